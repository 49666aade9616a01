"""Results as tables: `python tests/bench/report.py FILE [FILE ...]` prints the Markdown of docs/benchmarks.md.

What later files have (scenarios, memory) takes the place of what the first has; all their commands are named. With `--runs` the
files are runs of the same: what each of them reached, and the median.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, __file__.rpartition("/")[0])

from scenarios import SCENARIOS

Data = dict[str, Any]
#: columns that say how many times the lane's figure is another target's
RATIOS = ("nginx", "stock", "sglang-router", "vllm-router", "litellm")


def value_of(data: Data, scenario: str, target: str, metric: str) -> float | None:
    """The median of a metric, None where it was not measured."""
    found: Any = data["results"].get(scenario, {}).get(target, {}).get(metric)
    return None if found is None else float(found)


def show(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "us":
        return f"{value / 1000:,.2f} ms" if value >= 1000 else f"{value:.1f} us" if value < 20 else f"{value:.0f} us"
    return f"{value:,.0f}{unit}"


def ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}x" if a is not None and b else "–"


def table(data: Data) -> list[list[str]]:
    """Header and rows: every scenario and measure, every target, then the lane as a multiple of the others."""
    targets = data["targets"]
    others = [name for name in RATIOS if name in targets] if "lane" in targets else []
    rows = [["scenario", "measure", *targets, *(f"lane ÷ {name}" for name in others)]]
    for scenario in SCENARIOS:
        if scenario.key not in data["results"]:
            continue
        title = scenario.title
        for label, metric, unit in scenario.shown:
            values = {name: value_of(data, scenario.key, name, metric) for name in targets}
            wanted = others if unit in ("us", "/s") else []
            ratios = [ratio(values["lane"], values[name]) if name in wanted else "" for name in others]
            rows.append([title, label, *(show(values[name], unit) for name in targets), *ratios])
            title = ""
    return rows


# ---- what the project set itself


#: a goal that has an aim only
NO_BOUND = (0, float("inf"))


@dataclass(frozen=True)
class Goal:
    """`value` finds the figure, None: not measured. `must` and `aim` are upper bounds, lower ones when `at_least`."""

    title: str
    unit: str
    must: float
    aim: float
    value: Callable[[Data], float | None]
    at_least: bool = False

    def verdict(self, data: Data) -> str:
        value = self.value(data)
        if value is None:
            return "not measured"
        if self.met(value, self.aim):
            return "aim reached"
        if self.must in NO_BOUND:
            return "aim missed"
        return "reached" if self.met(value, self.must) else "**missed**"

    def met(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound


def times(scenario: str, metric: str, other: str) -> Callable[[Data], float | None]:
    def value(data: Data) -> float | None:
        ours, theirs = value_of(data, scenario, "lane", metric), value_of(data, scenario, other, metric)
        return ours / theirs if ours is not None and theirs else None

    return value


def added(scenario: str, metric: str) -> Callable[[Data], float | None]:
    def value(data: Data) -> float | None:
        ours, direct = value_of(data, scenario, "lane", metric), value_of(data, scenario, "direct", metric)
        return max(0.0, ours - direct) if ours is not None and direct is not None else None

    return value


def of(scenario: str, metric: str) -> Callable[[Data], float | None]:
    return lambda data: value_of(data, scenario, "lane", metric)


def memory(data: Data) -> float | None:
    return data["memory"]["growth"] / 1e6 if data.get("memory") else None


GOALS = (
    Goal("CPU a request, c=32, vs sglang-router", "x", 2, 1, times("plain32", "cpu_per_request", "sglang-router")),
    Goal("CPU a request, c=32, vs vllm-router", "x", 3, 1, times("plain32", "cpu_per_request", "vllm-router")),
    Goal("c=1: latency added, p50", "us", 400, 100, added("plain1", "latency.p50")),
    Goal("c=1: latency added, p99", "us", 1000, 300, added("plain1", "latency.p99")),
    Goal("time to first token, c=1, p50", "us", 600, 250, of("ttft", "ttft.p50")),
    Goal("1000 streams x 20/s: delivered", "%", 0.995, 0.999, of("streams1000", "delivered"), at_least=True),
    Goal("1000 streams: added p50", "us", 1000, 300, added("streams1000", "oneway.p50")),
    Goal("1000 streams: added p99", "us", 10_000, 900, added("streams1000", "oneway.p99")),
    Goal("1000 streams: CPU a chunk vs nginx", "x", 2, 2, times("streams1000", "cpu_per_chunk", "nginx")),
    Goal("4000 streams x 5/s: delivered", "%", 0.995, 0.999, of("streams4000", "delivered"), at_least=True),
    Goal("4000 streams: added p50", "us", 2000, 1000, added("streams4000", "oneway.p50")),
    Goal("4000 streams: added p99", "us", 30_000, 5000, added("streams4000", "oneway.p99")),
    Goal("saturation: chunks/s vs sglang-router", "x", 4, 4, times("saturation", "chunks_per_second", "sglang-router"), True),
    Goal("saturation: chunks/s vs nginx", "x", 0, 0.5, times("saturation", "chunks_per_second", "nginx"), True),
    Goal("250 KB prompt: CPU vs sglang-router", "x", 1, 1, times("prompt", "cpu_per_request", "sglang-router")),
    Goal("250 KB prompt: CPU vs nginx", "x", float("inf"), 2, times("prompt", "cpu_per_request", "nginx")),
    Goal("a connection each: CPU vs nginx", "x", 8, 4, times("connect", "cpu_per_request", "nginx")),
    Goal("CPU a request, c=32, vs LiteLLM", "x", 1 / 50, 1 / 200, times("plain32", "cpu_per_request", "litellm")),
    Goal("100,000 mixed requests: memory growth", "MB", 5, 0, memory),
    Goal("client leaves → upstream closed, p99", "us", 10_000, 2000, of("abort", "abort.p99")),
)


def bound(goal: Goal, value: float) -> str:
    if value in NO_BOUND and goal.unit == "x":
        return "–"
    return f"{'≥' if goal.at_least else '≤'} {amount(goal, value)}"


def amount(goal: Goal, value: float | None) -> str:
    if value is None:
        return "–"
    if goal.unit == "x":
        return f"{value:.2f}x" if value >= 0.1 else f"1/{1 / value:.0f}"
    return f"{value:.1f} MB" if goal.unit == "MB" else show(value, goal.unit)


def goals(data: Data) -> list[list[str]]:
    rows = [["goal", "must", "aim", "reached", "verdict"]]
    for goal in GOALS:
        value = goal.value(data)
        rows.append([goal.title, bound(goal, goal.must), bound(goal, goal.aim), amount(goal, value), goal.verdict(data)])
    return rows


# ---- on paper


def plain(rows: list[list[str]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    left = 2 if rows[0][0] == "scenario" else 1
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if n < left else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip().replace("**", ""))
    return "\n".join(lines)


def markdown_table(rows: list[list[str]]) -> str:
    head, *rest = rows
    align = "|" + "|".join("---" if n == 0 or (n == 1 and head[0] == "scenario") else "--:" for n in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", align, *("| " + " | ".join(row) + " |" for row in rest)])


def notes(data: Data) -> list[str]:
    """What a reader has to know about the figures."""
    lines = [f"not measured: {name}: {why}" for name, why in data["not_measured"].items()]
    for scenario in SCENARIOS:
        for name, result in data["results"].get(scenario.key, {}).items():
            if result.get("errors"):
                lines.append(f"{scenario.title}, {name}: {result['errors']:.0f} failed requests ({result.get('complaint', '')})")
    lines.append(f"load of other processes while measuring (CPUs, median): {data['foreign_share']:.2f}")
    return lines


def markdown(data: Data) -> str:
    machine = data["machine"]
    made = f"`{data['command']}`, {data['date']}, {machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}"
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    listed = "\n".join(f"- {line}" for line in notes(data))
    return f"{made}; {versions}.\n\n{markdown_table(table(data))}\n\n{listed}\n\n{markdown_table(goals(data))}\n"


def merged(files: list[Path]) -> Data:
    data, *more = (json.loads(path.read_text()) for path in files)
    for other in more:
        data["results"] |= other["results"]
        data["memory"] = other["memory"] or data["memory"]
        data["command"] += f"`, `{other['command']}"
    return dict(data)


def across(runs: list[Data]) -> list[list[str]]:
    """What the project set itself, and what each run reached of it."""
    rows = [["goal", "must", *(run["name"] for run in runs), "median", "verdict"]]
    for goal in GOALS:
        values = [goal.value(run) for run in runs]
        found = [value for value in values if value is not None]
        if goal.must not in NO_BOUND and found:
            median = statistics.median(found)
            verdict = "reached" if goal.met(median, goal.must) else "**missed**"
            shown = [amount(goal, value) for value in (*values, median)]
            rows.append([goal.title, bound(goal, goal.must), *shown, verdict])
    return rows


def main() -> int:
    names = sys.argv[1:]
    if names[:1] == ["--runs"]:
        print(markdown_table(across([json.loads(Path(name).read_text()) | {"name": Path(name).stem} for name in names[1:]])))
    else:
        print(markdown(merged([Path(name) for name in names])), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
