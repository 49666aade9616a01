"""`llmtap prune`: by itself, or through the writer that is at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.writer import Writer
from support.captures import Captures, weather
from support.command import llmtap
from support.wait import eventually


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    with Captures(tmp_path / "data") as captures:
        weather(captures)
    path = tmp_path / "llmtap.yaml"
    path.write_text(
        f"capture: {{dir: {tmp_path}/data}}\nstore: {{retain_days: 0, retain_bodies_days: 0, retain_timings_days: 0}}\n"
    )
    yield path


def run(config: Path, *args: str) -> Result:
    return llmtap("prune", "--config", config, *args)


def left(config: Path) -> tuple[int, int, int]:
    with closing(connect_ro(config.parent / "data" / "capture.db")) as conn:
        tables = ("exchanges", "messages", "token_timings")
        return tuple(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)  # type: ignore[return-value]


def test_ages_and_their_order(config: Path) -> None:
    assert "due: token times of 0 exchanges, texts of 0 exchanges, everything of 0 exchanges" in run(config, "--dry-run").stdout
    assert "texts of 3 exchanges" in run(config, "--dry-run", "--bodies-days", "1").stdout
    assert left(config) == (3, 8, 1)
    assert run(config).stdout.startswith(f"{config.parent / 'data' / 'capture.db'}: pruned 0 exchanges")
    assert "token times of 1" in run(config, "--timings-days", "0").stdout
    assert left(config) == (3, 8, 0)
    assert "texts of 3" in run(config, "--bodies-days", "0").stdout
    assert left(config) == (3, 0, 0)
    assert "pruned 3 exchanges" in run(config, "--days", "1").stdout
    assert left(config) == (0, 0, 0)


def test_past_a_size(config: Path) -> None:
    assert "pruned 3 exchanges" in run(config, "--max-gb", "0.00001").stdout


def test_through_the_writer(config: Path) -> None:
    data = config.parent / "data"
    results: list[Result] = []
    with WriterLock(data) as lock, closing(Writer(data)) as writer:
        assert lock.acquire()
        writer.run_pass()
        command = threading.Thread(target=lambda: results.append(run(config, "--days", "0")))
        command.start()

        def served() -> bool:
            writer.maintain()
            return not command.is_alive()

        eventually(served, "the command does not end")
        command.join()
    assert results[0].exit_code == 0, results[0].output
    assert "pruned 3 exchanges" in results[0].stdout
    assert left(config) == (0, 0, 0)
    assert list((data / "requests").iterdir()) == []


def test_when_the_writer_ends_meanwhile(config: Path) -> None:
    data = config.parent / "data"
    results: list[Result] = []
    with WriterLock(data) as lock:
        assert lock.acquire()
        command = threading.Thread(target=lambda: results.append(run(config, "--days", "0")))
        command.start()
        eventually(lambda: any((data / "requests").glob("*.json")), "nothing is asked")
    command.join()
    assert "pruned 3 exchanges" in results[0].stdout
    assert list((data / "requests").iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [(("--days", "-1"), "is not in the range", 2), (("--config", "none.yaml"), "none.yaml", 1)],
)
def test_mistakes(config: Path, args: tuple[str, ...], said: str, code: int) -> None:
    result = run(config, *args)
    assert (result.exit_code, said in result.output) == (code, True), result.output


def test_nothing_captured(tmp_path: Path) -> None:
    (tmp_path / "llmtap.yaml").write_text("capture: {dir: none}\n")
    result = run(tmp_path / "llmtap.yaml")
    assert result.exit_code == 1
    assert "no such database: nothing was captured yet" in result.output
