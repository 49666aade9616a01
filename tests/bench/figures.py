"""How long `llmtap analyze`, `slow` and `cost` take on a large database, and how much memory: `python tests/bench/figures.py
[--exchanges N] [--dir DIR]`.

Makes a capture database of N exchanges (60 days, five keys, three models) and runs each command as a process of its own. Targets:
2 seconds and 300 MB for a million. `--dir` keeps the database there and uses it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("addons", "launcher", "tests")]

TARGET_S, TARGET_MB = 2.0, 300.0
COMMANDS = {
    "analyze": "analyze",
    "analyze, by hour, JSON": "analyze --by hour --format json",
    "analyze, 2 days and a half": "analyze --since 2026-11-10T07:13 --until 2026-11-12T19:45",
    "analyze, a key and a model": "analyze --key ci --model Qwen/*",
    "analyze, a tag": "analyze --tag canary",
    "analyze, a page": "analyze --html {dir}/report.html",
    "slow": "slow",
    "slow, first token": "slow --by ttft --threshold 500",
    "slow, stalls of a model": "slow --by stall --model mistral-7b",
    "slow, a day": "slow --since 2026-11-20 --until 2026-11-21 --by tokens_per_second",
    "slow, a tag": "slow --tag canary",
    "cost": "cost",
    "cost, by hour": "cost --by hour --format json",
}
#: no limit is promised for these
OTHERS = {"compare two models": "compare Qwen/Qwen3-8B llama-3.1-8b"}


def run(arguments: str, database: Path) -> tuple[float, float, float]:
    """Wall time and time of the processor in seconds, and peak memory in MB, of a command."""
    argv = [word.format(dir=database.parent) for word in arguments.split()]
    path = os.pathsep.join([str(ROOT / "addons"), str(ROOT / "launcher"), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "llmtap_launcher", *argv, "--db", str(database)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        cwd=database.parent,
    )
    assert child.stderr is not None
    said = child.stderr.read()
    child.stderr.close()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, said.decode()
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def measure(folder: Path, exchanges: int) -> dict[str, tuple[float, float, float]]:
    """{what: the worse of two runs: wall seconds, of the processor, memory in MB}, the database made if it is not there."""
    from support.crowd import fill

    database = folder / "capture.db"
    if not database.exists():
        fill(database, exchanges)
    found = {}
    for what, arguments in {**COMMANDS, **OTHERS}.items():
        runs = [run(arguments, database) for _ in range(2)]
        wall, cpu, memory = (max(one[at] for one in runs) for at in range(3))
        found[what] = wall, cpu, memory
        print(f"{what:28} {wall:6.2f} s  {cpu:6.2f} s CPU  {memory:5.0f} MB", flush=True)
    return found


def main() -> None:
    """Prints a line a command; exit status 1 when one takes longer, or more, than promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, options.exchanges)
    over = [what for what in COMMANDS if found[what][0] > TARGET_S or found[what][2] > TARGET_MB]
    print(f"over the target: {', '.join(over)}" if over else "all within the targets")
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
