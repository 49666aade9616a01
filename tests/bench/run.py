"""`make bench`: what the gateway costs, beside nothing, nginx and mitmproxy's own reverse mode, in one alternating run.

    python tests/bench/run.py [--full] [--peers] [--json FILE] [--targets NAMES] [--scenarios KEYS]

Every scenario is asked of every target in turn, round after round; the table shows medians. The server under test has one CPU
for itself, the engine and the client have the others. Absolute figures depend on the machine: compare ratios. When others use the
machine, disturbed rounds are repeated, and the median is taken over the least disturbed ones.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, __file__.rpartition("/")[0])

import peers
import proc
import report
from scenarios import FULL, MEMORY, SCENARIOS, SHORT, Scenario
from targets import LOCAL, CannotRun, Target, running_fake

HERE = Path(__file__).resolve().parent
#: a round is disturbed when other processes use more than this much of a CPU
DISTURBED = 0.25
EXTRA_ROUNDS = {SHORT: 1, FULL: 3}
#: seconds after which disturbed rounds are no longer repeated
PATIENCE_S = {SHORT: 120, FULL: 3600}


def load(target: Target, backend: Target, nice: int = 0, **job: Any) -> dict[str, Any]:
    """One run of the load client in a process of its own."""
    known = [pid for pid in (backend.process.pid if backend.process else 0, os.getpid()) if pid]
    fields = {
        "port": target.port,
        "model": target.model,
        "watch": target.pids[:1],
        "known": known,
        "backend": backend.port,
        **job,
    }
    process = proc.spawn([sys.executable, str(HERE / "load.py"), json.dumps(fields)], proc.INSTRUMENTS, nice=nice)
    try:
        assert process.stdout is not None
        return dict(json.loads(process.stdout.read()))
    finally:
        proc.stop(process)


def flat(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"latency": {"p50": 1}} as {"latency.p50": 1}."""
    out: dict[str, Any] = {}
    for name, value in result.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def medians(rounds: list[dict[str, Any]], keep: int) -> dict[str, Any]:
    """The median of every figure over the `keep` least disturbed rounds."""
    best = sorted(map(flat, rounds), key=lambda r: float(r["foreign_share"]))[:keep]
    names = {name for one in best for name, value in one.items() if not isinstance(value, str)}
    out: dict[str, Any] = {name: statistics.median(one[name] for one in best if name in one) for name in sorted(names)}
    if complaints := [one["complaint"] for one in best if "complaint" in one]:
        out["complaint"] = complaints[0]
    return out


class Bench:
    """The run: the targets that could be started, and what was measured of them."""

    def __init__(self, targets: list[Target], backend: Target, mode: str, rounds: int, nice: int) -> None:
        self.targets, self.backend, self.mode, self.rounds, self.nice = targets, backend, mode, rounds, nice
        self.patient_until = time.monotonic() + PATIENCE_S[mode]
        self.results: dict[str, dict[str, Any]] = {}
        self.raw: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def measure(self, scenario: Scenario) -> None:
        chosen = [t for t in self.targets if self.mode == FULL or t.name not in scenario.slow]
        rounds = self.rounds or scenario.rounds[self.mode]
        raw: dict[str, list[dict[str, Any]]] = {t.name: [] for t in chosen}
        for n in range(rounds + EXTRA_ROUNDS[self.mode]):
            if n >= rounds and time.monotonic() > self.patient_until:
                break
            again = [t for t in chosen if n < rounds or self.disturbed(raw[t.name], rounds)]
            if n >= rounds and again:  # beside what it is compared with
                again = [t for t in chosen if t in again or t.name in ("direct", "nginx")]
            for target in again:
                others = [t.process for t in self.targets if t is not target and t.process is not None]
                with proc.paused(others):
                    result = load(target, self.backend, self.nice, seconds=scenario.seconds[self.mode], **scenario.job)
                raw[target.name].append(result)
                proc.settle(target.pids)
        self.raw[scenario.key] = raw
        self.results[scenario.key] = {name: medians(found, rounds) for name, found in raw.items()}

    def disturbed(self, found: list[dict[str, Any]], wanted: int) -> bool:
        return sum(r["foreign_share"] <= DISTURBED for r in found) < wanted

    def memory(self, requests: int) -> dict[str, Any] | None:
        """What the lane's memory grows by over so many requests, after a fifth as many to warm up."""
        lane = next((t for t in self.targets if t.name == "lane"), None)
        if lane is None or not requests:
            return None
        load(lane, self.backend, self.nice, connections=32, mixed=True, requests=requests // 5)
        result = load(lane, self.backend, self.nice, connections=32, mixed=True, requests=requests)
        return {"requests": requests, "growth": result["rss_growth"], "rss": result["rss"], "errors": result["errors"]}


def machine() -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    kernel = platform.release().split("-")[0]
    return {"cpu": names[0] if names else platform.machine(), "cpus": len(proc.SERVER | proc.INSTRUMENTS), "kernel": kernel}


def versions(targets: list[Target]) -> dict[str, str]:
    found = {"Python": platform.python_version(), "mitmproxy": version("mitmproxy"), "uvloop": version("uvloop")}
    for target in targets:
        if target.name == "nginx" and target.process:
            binary = os.readlink(f"/proc/{target.process.pid}/exe")
            found["nginx"] = subprocess.run([binary, "-v"], capture_output=True, text=True).stderr.rpartition("/")[2].strip()
        elif target.name in peers.PEERS:
            found[target.name] = peers.version(target.name)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run.py", description="What the gateway costs, as ratios.")
    parser.add_argument("--full", action="store_true", help="longer windows, slow targets in every scenario, memory")
    parser.add_argument("--peers", action="store_true", help="also sglang-router, vllm-router and LiteLLM, installed from PyPI")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured")
    parser.add_argument("--targets", metavar="NAMES", help=f"of direct,{','.join([*LOCAL, *peers.PEERS])}")
    parser.add_argument("--scenarios", metavar="KEYS", help=f"of {','.join([s.key for s in SCENARIOS])},memory")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of every scenario")
    parser.add_argument(
        "--nice", type=int, default=0, help="of all processes measured; below 0 needs rights, and helps on a busy machine"
    )
    options = parser.parse_args(argv)
    starters = LOCAL | peers.PEERS
    names = ["nginx", "lane", "stock", *(["mitmdump"] if options.full else []), *(peers.PEERS if options.peers else [])]
    if options.targets:
        names = [name for name in options.targets.split(",") if name != "direct"]
    wanted = options.scenarios.split(",") if options.scenarios else [*(s.key for s in SCENARIOS), "memory"]
    if unknown := [*(set(names) - starters.keys()), *(set(wanted) - {s.key for s in SCENARIOS} - {"memory"})]:
        parser.error(f"unknown: {', '.join(unknown)}")
    mode = FULL if options.full else SHORT
    os.sched_setaffinity(0, proc.INSTRUMENTS)
    proc.raise_nofile()
    not_measured: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmtap-bench-")))
        backend = stack.enter_context(running_fake(options.nice))
        targets = [Target("direct", backend.port)]
        for name in names:
            (folder / name).mkdir()
            try:
                targets.append(stack.enter_context(starters[name](folder / name, backend.port, options.nice)))
            except CannotRun as error:
                not_measured[name] = str(error)
                print(f"not measured: {name}: {error}", file=sys.stderr, flush=True)
        bench = Bench(targets, backend, mode, options.rounds, options.nice)
        for scenario in SCENARIOS:
            if scenario.key in wanted:
                print(f"{scenario.title} ...", file=sys.stderr, flush=True)
                bench.measure(scenario)
        memory = bench.memory(MEMORY[mode]) if "memory" in wanted else None
        shares = [r["foreign_share"] for found in bench.raw.values() for rounds in found.values() for r in rounds]
        data: report.Data = {
            "command": " ".join(["python tests/bench/run.py", *(sys.argv[1:] if argv is None else argv)]),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "versions": versions(targets),
            "targets": [t.name for t in targets],
            "not_measured": not_measured,
            "foreign_share": statistics.median(shares) if shares else 0.0,
            "results": bench.results,
            "memory": memory,
            "rounds": bench.raw,
        }
    if options.json:
        options.json.write_text(json.dumps(data, indent=1))
    print(report.plain(report.table(data)))
    print()
    print(report.plain(report.goals(data)))
    print()
    print("\n".join(report.notes(data)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
