"""Several gateway processes, one set of numbers: killed, restarted, asked at any time."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmtap.metrics import families as f
from llmtap.metrics.workers import Share
from support.wait import eventually

pytestmark = pytest.mark.integration

#: counts a line of standard input each: `c N`, `h SECONDS`, `g N`; `q` ends it well
WORKER = """
import asyncio, sys
from pathlib import Path
from llmtap.metrics import families as f
from llmtap.metrics.workers import Share

async def main():
    families = f.Families()
    counter = families.add(f.Counter("c", "C.", ("a",)))
    gauge = families.add(f.Counter("g", "G.", (), "gauge"))
    top = families.add(f.Counter("top", "T.", (), "gauge", together="max"))
    histogram = families.add(f.Histogram("h", "H.", (0.5, 1.0)))
    share = Share(families, Path(sys.argv[1]), sys.argv[2])
    share.start()
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while (line := (await loop.run_in_executor(None, sys.stdin.readline)).split()) and line[0] != "q":
        if line[0] == "c": counter.labels("x").inc(float(line[1]))
        if line[0] == "g": gauge.labels().set(float(line[1])); top.labels().set(float(line[1]))
        if line[0] == "h": histogram.observe(float(line[1]))
    share.stop()

asyncio.run(main())
"""


class Worker:
    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def tell(self, *lines: str) -> None:
        assert self.process.stdin is not None
        for line in lines:
            self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, kill: bool = False) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL) if kill else self.tell("q")
        self.process.wait(timeout=20)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.end(kill=True)


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[CollectorRegistry]:
    """A registry that tells all of the folder, with nothing counted in this process."""
    registry = CollectorRegistry()
    share = Share(f.Families(), tmp_path, "scraped")
    registry.register(share)
    yield registry
    share.stop()


def start(workers: list[Worker], folder: Path, name: str) -> Worker:
    workers.append(Worker(folder, name))
    return workers[-1]


def test_whoever_is_asked_answers_for_all(workers: list[Worker], tmp_path: Path, scraped: CollectorRegistry) -> None:
    a, b = start(workers, tmp_path, "a"), start(workers, tmp_path, "b")
    a.tell("c 3", "h 0.7", "g 2")
    b.tell("c 4", "h 5", "g 1")
    eventually(lambda: scraped.get_sample_value("c_total", {"a": "x"}) == 7, "not summed")
    eventually(lambda: scraped.get_sample_value("h_sum") == 5.7, "not summed")
    assert scraped.get_sample_value("h_bucket", {"le": "1.0"}) == 1 and scraped.get_sample_value("h_count") == 2
    eventually(lambda: scraped.get_sample_value("g") == 3, "gauges not summed")
    assert scraped.get_sample_value("top") == 2
    text = generate_latest(scraped).decode()
    assert {family.name for family in text_string_to_metric_families(text)} >= {"c", "g", "h"}


@pytest.mark.parametrize("kill", [False, True])
def test_counters_survive_a_restart_and_gauges_do_not(
    workers: list[Worker], tmp_path: Path, scraped: CollectorRegistry, kill: bool
) -> None:
    first = start(workers, tmp_path, "w1")
    first.tell("c 3", "h 0.7", "g 2")
    eventually(lambda: scraped.get_sample_value("g") == 2, "not told")
    first.end(kill)
    assert scraped.get_sample_value("c_total", {"a": "x"}) == 3 and scraped.get_sample_value("h_count") == 1
    assert not scraped.get_sample_value("g")
    second = start(workers, tmp_path, "w2")
    second.tell("c 1", "g 5")
    eventually(lambda: scraped.get_sample_value("c_total", {"a": "x"}) == 4, "not added")
    eventually(lambda: scraped.get_sample_value("g") == 5, "no gauge")
    assert {p.name for p in tmp_path.glob("*.json")} == {"ended.json", "scraped.json", "w2.json"}


def test_no_counter_goes_down_while_workers_come_and_go(
    workers: list[Worker], tmp_path: Path, scraped: CollectorRegistry
) -> None:
    other = CollectorRegistry()
    share = Share(f.Families(), tmp_path, "other")  # a second process that folds at the same time
    other.register(share)
    highest = 0.0
    for n in range(6):
        worker = start(workers, tmp_path, f"w{n}")
        worker.tell("c 10")

        def told(registry: CollectorRegistry) -> float:
            nonlocal highest
            value = registry.get_sample_value("c_total", {"a": "x"}) or 0
            assert value >= highest
            highest = value
            return value

        eventually(lambda n=n: told(scraped) >= 10 * (n + 1), "not told")  # type: ignore[misc]
        worker.end(kill=n % 2 == 0)
        for registry in (other, scraped, other):
            told(registry)
    assert highest == 60
    share.stop()
