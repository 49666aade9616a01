"""`llmtap cost` as a user types it; repricing by itself and through the writer at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import orjson
import pytest
from click.testing import Result

from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.writer import Writer
from support.captures import Captures, weather
from support.command import llmtap
from support.traffic import write
from support.wait import eventually


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    with Captures(tmp_path / "data") as captures:
        weather(captures)
    path = tmp_path / "llmtap.yaml"
    path.write_text(
        f"capture: {{dir: {tmp_path}/data}}\nprices: [{{model: 'Qwen/*', input_usd_per_million: 1, output_usd_per_million: 2}}]\n"
    )
    yield path


run = partial(llmtap, "cost")


#: 142 + 211 tokens in, 41 + 121 out
COST = (353 * 1 + 162 * 2) / 1e6


def total(config: Path) -> float:
    return float(orjson.loads(run("--config", str(config), "--format", "json").stdout)["total"]["cost_usd"])


def test_repricing(config: Path) -> None:
    assert total(config) == 0
    done = run("--config", str(config), "--reprice")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"{config.parent}/data/capture.db: 2 of 3 exchanges have another price: $0.00 before, $0.000677 now\n"
    assert "cost        $0.000677" in done.stdout
    assert total(config) == pytest.approx(COST)
    # nothing more to do the second time; other selections are left alone
    assert "0 of 3 exchanges" in run("--config", str(config), "--reprice").stderr
    config.write_text(f"capture: {{dir: {config.parent}/data}}\nprices: []\n")
    assert "0 of 0 exchanges" in run("--config", str(config), "--reprice", "--key", "nobody").stderr
    assert total(config) == pytest.approx(COST)
    assert "2 of 3 exchanges" in run("--config", str(config), "--reprice").stderr
    assert total(config) == 0


def test_repricing_through_the_writer(config: Path) -> None:
    data = config.parent / "data"
    served = threading.Event()
    with WriterLock(data) as lock, closing(Writer(data)) as writer:
        assert lock.acquire()
        writer.run_pass()
        results: list[Result] = []
        thread = threading.Thread(target=lambda: results.append(run("--config", str(config), "--reprice", "--format", "json")))
        thread.start()

        def serve() -> bool:
            writer.maintain()
            served.set()
            return bool(results)

        eventually(serve, "the writer was not asked")
        thread.join(10)
    assert "2 of 3 exchanges have another price" in results[0].stderr
    assert orjson.loads(results[0].stdout)["total"]["cost_usd"] == pytest.approx(COST)


def test_of_a_log_folder_with_the_prices_as_they_are(config: Path, tmp_path: Path) -> None:
    write(tmp_path / "log", 100)
    config.write_text("prices: [{model: 'served-*', input_usd_per_million: 1, output_usd_per_million: 1}]\n")
    done = run("--config", str(config), "--log-dir", str(tmp_path / "log"), "--reprice", "--format", "jsonl", "--by", "model")
    lines = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert [line["group"] for line in lines] == ["total", "model", "model", "model", "model", "model"] or len(lines) >= 3
    assert lines[0]["cost_usd"] > 0
    assert not (tmp_path / "log" / "capture.db").exists()
    assert done.exit_code == 0


def test_nothing_there(tmp_path: Path) -> None:
    done = run("--db", str(tmp_path / "none.db"), "--reprice")
    assert (done.exit_code, "no such database" in done.stderr) == (1, True)
