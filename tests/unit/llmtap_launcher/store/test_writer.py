"""The writer: exactly once whatever happens between any two steps, and nothing deleted that is not in."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.record import encode
from llmtap.policy.pricing import Rate
from llmtap.spool.frame import frame
from llmtap.spool.segment import Segment, adopted, scan
from llmtap.spool.writer import SegmentWriter
from llmtap_launcher.store import writer as module
from llmtap_launcher.store.database import StoreError, connect_ro
from llmtap_launcher.store.options import Options, Retention
from llmtap_launcher.store.writer import Writer
from support.records import START_US, begin, chat, end, sink

Make = Callable[..., Writer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Writer] = []

    def build(**kwargs: Any) -> Writer:
        made.append(Writer(tmp_path, clock=lambda: START_US / 1e6 + 10, **kwargs))
        return made[-1]

    yield build
    for writer in made:
        writer.close()


def rows(directory: Path, sql: str = "SELECT uid, outcome FROM exchanges ORDER BY id") -> list[tuple[Any, ...]]:
    with closing(connect_ro(directory / "capture.db")) as conn:
        return [tuple(row) for row in conn.execute(sql)]


def put(directory: Path, name: str, *payloads: bytes, tail: bytes = b"") -> Path:
    """A segment of a dead worker."""
    (directory / "spool").mkdir(exist_ok=True)
    path = directory / "spool" / name
    path.write_bytes(b"".join(map(frame, payloads)) + tail)
    return path


def quarantined(directory: Path) -> list[tuple[Any, Any]]:
    lines = (directory / "quarantine.jsonl").read_bytes().splitlines()
    return [(e["reason"], e["line"]) for e in map(orjson.loads, lines)]


def test_a_living_worker(tmp_path: Path, make: Make) -> None:
    writer, spool = make(), sink(tmp_path)
    spool.write_begin(begin("a"))
    assert writer.run_pass() == 1
    assert rows(tmp_path) == [("a", "open")]
    spool.write_end(end("a"))
    assert writer.run_pass() == 1
    assert writer.run_pass() == 0
    assert rows(tmp_path) == [("a", "ok")]
    assert rows(tmp_path, "SELECT ingested_to, records, bad, finished_at FROM segments") == [(spool.spool_bytes, 2, 0, None)]
    assert writer.status.spool_bytes == spool.spool_bytes
    assert writer.status.db_bytes > 0
    spool.close()
    writer.run_pass()
    assert scan(tmp_path / "spool") == {}
    assert rows(tmp_path, "SELECT finished_at FROM segments") == [("2026-11-21T01:35:33.456Z",)]


def test_rotated_segments_go_as_soon_as_they_are_in(tmp_path: Path, make: Make) -> None:
    spool = sink(tmp_path, segment_bytes=2000)
    for n in range(20):
        spool.write_begin(begin(f"u{n}"))
        spool.write_end(end(f"u{n}"))
    assert len(scan(tmp_path / "spool")) > 3
    make().run_pass()
    assert rows(tmp_path) == [(f"u{n}", "ok") for n in range(20)]
    assert len(scan(tmp_path / "spool")) == 1, "the one being written stays"
    spool.close()


def test_a_dead_workers_unfinished_exchanges_are_lost_and_a_living_ones_are_not(tmp_path: Path, make: Make) -> None:
    dead, alive = sink(tmp_path, "w0"), sink(tmp_path, "w1")
    dead.write_begin(begin("dead"))
    alive.write_begin(begin("alive"))
    dead.write_begin(begin("done"))
    dead.write_end(end("done"))
    writer = make()
    writer.run_pass()
    assert {o for _, o in rows(tmp_path)} == {"open", "ok"}
    dead.close()
    writer.run_pass()
    assert dict(rows(tmp_path)) == {"dead": "lost", "alive": "open", "done": "ok"}
    assert writer.status.lost == 1
    alive.write_end(end("alive"))
    alive.close()
    writer.run_pass()
    assert dict(rows(tmp_path)) == {"dead": "lost", "alive": "ok", "done": "ok"}


def test_a_begin_in_one_segment_and_its_end_in_a_later_one_is_not_lost(tmp_path: Path, make: Make) -> None:
    spool = sink(tmp_path, segment_bytes=300)
    writer = make()
    for n in range(5):
        spool.write_begin(begin(f"u{n}"))
        writer.run_pass()
    for n in range(5):
        spool.write_end(end(f"u{n}"))
    spool.close()
    writer.run_pass()
    assert {o for _, o in rows(tmp_path)} == {"ok"}
    assert writer.status.lost == 0


def test_an_exchange_whose_halves_are_in_two_kinds_of_files(tmp_path: Path, make: Make) -> None:
    body = chat("x" * 200_000)
    spool, writer = sink(tmp_path, segment_bytes=300_000), make()
    for uid in ("ended", "cut"):
        assert spool.write_begin_soon(begin(uid, body)) is not None
    spool.write_end(end("ended"))
    writer.run_pass()
    assert {o for _, o in rows(tmp_path)} <= {"open", "ok"}, "whichever half was there already"
    spool.close()
    writer.run_pass()
    assert dict(rows(tmp_path)) == {"ended": "ok", "cut": "lost"}
    assert rows(tmp_path, "SELECT DISTINCT boot, conversation_id IS NOT NULL FROM exchanges") == [("w0-b", 1)]
    assert writer.status.lost == 1 and not scan(tmp_path / "spool")


@pytest.mark.parametrize("first", ["b", "b.long"])
def test_one_kind_of_files_alone_tells_nobodys_death(tmp_path: Path, make: Make, first: str) -> None:
    own, long = (SegmentWriter(tmp_path / "spool", "w0", boot, 1_000_000) for boot in ("b", "b.long"))
    long.append(encode(begin("u")))
    writer = make()
    writer.run_pass()
    (long if first == "b.long" else own).close()
    writer.run_pass()
    assert rows(tmp_path) == [("u", "open")]
    (own if first == "b.long" else long).close()
    writer.run_pass()
    assert rows(tmp_path) == [("u", "lost")]


def test_the_dead_between_two_runs_of_the_writer_are_settled_at_its_start(tmp_path: Path, make: Make) -> None:
    spool = sink(tmp_path)
    spool.write_begin(begin("a"))
    first = make()
    first.run_pass()
    first.close()
    spool.close()
    shutil.rmtree(tmp_path / "spool")
    make().run_pass()
    assert rows(tmp_path) == [("a", "lost")]
    assert rows(tmp_path, "SELECT finished_at IS NOT NULL FROM segments") == [(1,)]


def test_damage_poison_and_torn_tails_are_counted_and_kept(tmp_path: Path, make: Make) -> None:
    whole = frame(encode(end("a")))
    put(tmp_path, "w0-b-000001.jsonl", encode(begin("a")), b'{"v":9,"t":"begin"}', tail=b"garbage\n" + whole + b"0000")
    writer = make()
    writer.run_pass()
    assert rows(tmp_path) == [("a", "ok")]
    assert rows(tmp_path, "SELECT records, bad FROM segments") == [(3, 3)]
    assert writer.status.bad == 3
    assert set(quarantined(tmp_path)) == {("not a record", "garbage\n"), ("version 9", '{"v":9,"t":"begin"}'), ("torn", "0000")}
    assert scan(tmp_path / "spool") == {}


def test_a_torn_tail_of_a_living_worker_is_waited_for(tmp_path: Path, make: Make) -> None:
    spool = sink(tmp_path)
    (segment,) = scan(tmp_path / "spool")
    with (tmp_path / "spool" / segment.filename).open("ab") as file:
        file.write(b"0000")
    make().run_pass()
    assert rows(tmp_path, "SELECT * FROM segments") == []
    spool.close()


def test_gaps_are_counted(tmp_path: Path, make: Make) -> None:
    put(
        tmp_path,
        "w0-b-000001.jsonl",
        b'{"v":1,"t":"gap","worker":"w0","at_us":1,"dropped":{"records_disk_full":3,"x":"y"}}',
        b'{"v":1,"t":"gap"}',
    )
    writer = make()
    writer.run_pass()
    assert writer.status.dropped == 3
    assert writer.status.bad == 0


def test_batches_bound_a_transaction(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_RECORDS", 3)
    spool = sink(tmp_path)
    for n in range(10):
        spool.write_begin(begin(f"u{n}"))
    writer, commits, lags = make(), 0, []

    def committed() -> None:
        nonlocal commits
        commits += 1
        lags.append(writer.status.lag_s)

    writer.on_commit = committed
    writer.run_pass()
    assert commits == 4
    assert lags == [10.0] * 4, "while catching up the lag is the age of what was last committed"
    assert writer.status.lag_s == 0.0
    spool.close()


@pytest.mark.parametrize(
    "statement", ["BEGIN IMMEDIATE", "INSERT INTO exchanges", "INSERT INTO segments", "COMMIT", "UPDATE segments"]
)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_error_at_any_step_is_tried_again_without_loss_or_double(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, statement: str, nth: int
) -> None:
    monkeypatch.setattr(module, "BATCH_RECORDS", 4)
    spool = sink(tmp_path)
    for n in range(6):
        spool.write_begin(begin(f"u{n}"))
        spool.write_end(end(f"u{n}"))
    spool.close()
    put(tmp_path, "w1-b-000001.jsonl", b"{}")
    writer = make()
    seen = 0

    class Failing:
        def __init__(self, conn: sqlite3.Connection) -> None:
            self._conn = conn

        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            nonlocal seen
            if sql.startswith(statement):
                seen += 1
                if seen == nth:
                    raise sqlite3.OperationalError("database or disk is full")
            return self._conn.execute(sql, *args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._conn, name)

    real = module.open_writer
    monkeypatch.setattr(module, "open_writer", lambda path: Failing(real(path)))
    failures = 0
    while scan(tmp_path / "spool"):
        try:
            writer.run_pass()
        except sqlite3.OperationalError:
            failures += 1
            assert failures == 1
    assert failures == (1 if seen >= nth else 0)
    assert rows(tmp_path) == [(f"u{n}", "ok") for n in range(6)]
    assert rows(tmp_path, "SELECT sum(records), sum(bad) FROM segments") == [(13, 1)]
    assert len(quarantined(tmp_path)) == 1


def test_a_crash_between_commit_and_delete_leaves_a_file_that_is_not_read_again(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "w0-b-000001.jsonl", b'{"v":1,"t":"gap"}')
    first = make()
    monkeypatch.setattr(Writer, "_remove", lambda *_: None)
    first.run_pass()
    first.close()
    assert path.exists()
    monkeypatch.undo()
    again = make()
    assert again.run_pass() == 0
    assert not path.exists()


def test_a_segment_locked_after_all_is_not_deleted(tmp_path: Path, make: Make) -> None:
    """A worker that has made its file and not yet locked it: adopted as empty, then locked and written."""
    writer = make()
    path = put(tmp_path, "w0-b-000001.jsonl")
    progress_finished = []
    real = writer._remove

    def race(progress: Any, superseded: bool) -> None:
        with adopted(path) as mine:  # the worker takes its lock, and writes
            assert mine
            path.write_bytes(frame(b'{"v":1,"t":"gap"}'))
            real(progress, superseded)
        progress_finished.append(progress.finished)

    writer._remove = race  # type: ignore[method-assign]
    writer.run_pass()
    assert path.exists()
    assert progress_finished == [False]
    writer._remove = real  # type: ignore[method-assign]
    assert writer.run_pass() == 1
    assert not path.exists()


def test_a_file_that_cannot_be_deleted_is_said_once(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "w0-b-000001.jsonl", b'{"v":1,"t":"gap"}')

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        writer = make()
        for _ in range(3):
            writer.run_pass()
    assert [r.getMessage() for r in caplog.records if "cannot be deleted" in r.getMessage()] == [
        f"{tmp_path / 'spool' / 'w0-b-000001.jsonl'}: is in the database and cannot be deleted: Operation not permitted"
    ]
    assert writer.status.ingested_records == 1


def test_a_database_moved_away_is_begun_anew_and_the_living_segment_read_again(tmp_path: Path, make: Make) -> None:
    writer, spool = make(), sink(tmp_path)
    spool.write_begin(begin("a"))
    writer.run_pass()
    (tmp_path / "capture.db").rename(tmp_path / "old.db")
    spool.write_end(end("a"))
    writer.run_pass()
    assert rows(tmp_path) == [("a", "ok")]
    spool.close()


def test_segments_stay_when_the_database_vanishes_under_a_commit(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "w0-b-000001.jsonl", b'{"v":1,"t":"gap"}')
    writer = make()
    real = module.scan

    def vanish(directory: Path) -> dict[Segment, int]:
        (tmp_path / "capture.db").unlink(missing_ok=True)
        return real(directory)

    with monkeypatch.context() as patched:
        patched.setattr(module, "scan", vanish)
        writer.run_pass()
    assert path.exists()
    writer.run_pass()
    assert rows(tmp_path, "SELECT records FROM segments") == [(1,)]
    assert not path.exists()


def test_trouble_with_the_database_keeps_the_spool(tmp_path: Path, make: Make) -> None:
    path = put(tmp_path, "w0-b-000001.jsonl", b'{"v":1,"t":"gap"}')
    (tmp_path / "capture.db").write_bytes(b"no database at all" * 100)
    writer = make()
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError, match="not a database"):
            writer.run_pass()
    assert path.exists()
    (tmp_path / "capture.db").unlink()
    assert writer.run_pass() == 1


def test_a_newer_database_keeps_the_spool(tmp_path: Path, make: Make) -> None:
    make().run_pass()
    with closing(sqlite3.connect(tmp_path / "capture.db")) as conn, conn:
        conn.execute("INSERT INTO _sqlite_migrations(migration_set, name) VALUES ('llmtap', 'm999')")
    path = put(tmp_path, "w0-b-000001.jsonl", b'{"v":1,"t":"gap"}')
    with pytest.raises(StoreError, match="newer llmtap"):
        make().run_pass()
    assert path.exists()


def test_the_write_ahead_log_is_cut_back_once_no_reader_holds_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAL_BYTES", 100_000)
    now = [1000.0]
    spool, wal = sink(tmp_path), tmp_path / "capture.db-wal"
    text = os.urandom(10_000).hex()
    with closing(Writer(tmp_path, clock=lambda: now[0])) as writer:
        writer.run_pass()

        def grow(times: int) -> int:
            for n in range(times):
                spool.write_begin(begin(f"{now[0]} {n}", chat(f"{now[0]} {n} {text}")))
                writer.run_pass()
            return wal.stat().st_size

        with closing(connect_ro(tmp_path / "capture.db")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM exchanges").fetchone()
            grown = grow(20)
            assert grown > 100_000
            reader.execute("COMMIT")
            assert grow(1) > grown, "after a failure it is not tried at every commit"
            now[0] += 10
            assert grow(1) == 0
    spool.close()


def test_another_place_for_the_database(tmp_path: Path) -> None:
    put(tmp_path, "w0-b-000001.jsonl", b'{"v":1,"t":"gap"}')
    with closing(Writer(tmp_path, tmp_path / "elsewhere" / "x.db")) as writer:
        writer.run_pass()
    assert (tmp_path / "elsewhere" / "x.db").exists()
    assert not (tmp_path / "capture.db").exists()


# beside ingesting


def test_finished_segments_are_archived(tmp_path: Path, make: Make) -> None:
    writer, spool = make(options=Options(archive_days=1)), sink(tmp_path, segment_bytes=1)
    spool.write_begin(begin("a"))
    spool.write_end(end("a"))
    writer.run_pass()
    assert [p.name for p in (tmp_path / "archive").iterdir()] == ["w0-b-000001.jsonl.zst"], "the one being written is not"
    spool.close()
    writer.run_pass()
    assert len(list((tmp_path / "archive").iterdir())) == 2
    assert not list((tmp_path / "spool").iterdir())
    writer.maintain()
    assert len(list((tmp_path / "archive").iterdir())) == 2
    for path in (tmp_path / "archive").iterdir():
        os.utime(path, (START_US / 1e6 - 90_000,) * 2)
    make(options=Options(archive_days=1)).run_pass()
    writer._maintain_at = 0
    writer.maintain()
    assert not list((tmp_path / "archive").iterdir())


def test_an_archive_that_cannot_be_written_does_not_keep_the_spool(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "archive").write_text("in the way")
    writer, spool = make(options=Options(archive_days=1)), sink(tmp_path, segment_bytes=1)
    for name in "abc":
        spool.write_begin(begin(name))
    spool.close()
    writer.run_pass()
    assert not list((tmp_path / "spool").iterdir())
    assert "not archived: File exists" in caplog.text


def test_it_prunes_by_itself(tmp_path: Path, make: Make) -> None:
    writer, spool = make(options=Options(retention=Retention(exchanges_days=1))), sink(tmp_path)
    day_us = 86_400_000_000
    for name, age in (("old", 2), ("young", 0)):
        spool.write_begin(begin(name, at_us=START_US - age * day_us))
        spool.write_end(end(name, at_us=START_US - age * day_us))
    writer.run_pass()
    writer.maintain()
    assert rows(tmp_path) == [("young", "ok")]
    assert writer.status.pruned == 1
    spool.write_begin(begin("again", chat("hello")))
    writer.run_pass()
    assert [r[0] for r in rows(tmp_path)] == ["young", "again"], "nothing that went is remembered"
    spool.close()


def test_costs_by_the_hour_come_when_the_hour_is_over(tmp_path: Path, make: Make) -> None:
    rate = Rate("own", "*", None, None, None, None, 10**9)
    writer, spool = make(options=Options(rates=(rate,))), sink(tmp_path)
    for name, age_us in (("old", 3 * 3_600_000_000), ("now", 0)):
        spool.write_begin(begin(name, at_us=START_US - age_us))
        spool.write_end(end(name, at_us=START_US - age_us))
    spool.close()
    writer.run_pass()
    writer.maintain()
    assert rows(tmp_path, "SELECT uid, cost_nanousd FROM exchanges ORDER BY id") == [("old", 10**9), ("now", None)]


def test_lost_exchanges_count(tmp_path: Path, make: Make) -> None:
    writer, spool = make(), sink(tmp_path)
    spool.write_begin(begin("a", key_name="k"))
    writer.run_pass()
    assert rows(tmp_path, "SELECT * FROM usage_daily") == []
    spool.close()
    writer.run_pass()
    assert rows(tmp_path, "SELECT key_name, requests, errors FROM usage_daily") == [("k", 1, 1)]
