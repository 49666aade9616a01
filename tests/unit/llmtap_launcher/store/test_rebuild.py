"""A database made again equals the live one; trouble leaves the old one where it was."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest

from llmtap.core.errors import LlmtapError
from llmtap.policy.pricing import Rate
from llmtap_launcher.store.archive import Archive
from llmtap_launcher.store.checksum import checksums, rows
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.options import Options, Retention
from llmtap_launcher.store.rebuild import missing, rebuild
from llmtap_launcher.store.writer import Writer
from support.records import START_US, begin, chat, end, sink

OPTIONS = Options(
    rates=(Rate("own", "*", None, 10**8, 10**9, None, None),), archive_days=3, retention=Retention(exchanges_days=9e4)
)


def sums(database: Path) -> dict[str, str]:
    with closing(connect_ro(database)) as conn:
        return checksums(conn)


def live(directory: Path, seed: int = 1) -> None:
    """Two workers, talks that go on, passes at odd moments, one request that never ends, one line that is nothing."""
    dice = random.Random(seed)
    sinks = [sink(directory, f"w{n}", segment_bytes=4000) for n in range(2)]
    with closing(Writer(directory, options=OPTIONS)) as writer:
        for talk in range(12):
            history = []
            for turn in range(dice.randint(1, 4)):
                history.append({"role": "user", "content": f"q {talk} {turn}"})
                uid, at_us = f"u{talk}.{turn}", START_US + talk * 60_000_000 + turn * 9_000_000
                out = dice.choice(sinks)
                out.write_begin(begin(uid, chat(*history), at_us=at_us, key_name="k"))
                if dice.random() < 0.5:
                    writer.run_pass()
                if (talk, turn) != (3, 0):
                    out.write_end(end(uid, f" a {talk} {turn}", at_us=at_us + 1_000_000, deltas=[100, 10, 12]))
                writer.run_pass()
                history.append({"role": "assistant", "content": f"a {talk} {turn}"})
        for out in sinks:
            out.close()
        (directory / "spool" / "w9-b-000001.jsonl").write_bytes(b"nonsense\n")
        writer.run_pass()
    assert not list((directory / "spool").iterdir())


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_live_one(tmp_path: Path, seed: int) -> None:
    live(tmp_path, seed)
    database = tmp_path / "capture.db"
    before = sums(database)
    assert len(Archive(tmp_path).segments()) > 5
    assert missing(tmp_path, database) == 0
    told: list[str] = []
    done = rebuild(tmp_path, database, OPTIONS, told.append)
    with closing(Writer(tmp_path, options=OPTIONS)) as writer:  # what is settled at the next start
        writer.run_pass()
    assert sums(database) == before
    assert done.old == tmp_path / "capture.old-1.db"
    assert sums(done.old) == before
    assert (done.bad, done.damaged, len(told)) == (1, [], done.segments)
    assert not (tmp_path / "rebuild").exists()
    with closing(connect_ro(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert len(rows(conn, "conversations")) >= 12


def test_a_corrupted_database_is_made_again(tmp_path: Path) -> None:
    live(tmp_path)
    database = tmp_path / "capture.db"
    before = sums(database)
    database.write_bytes(b"rubbish" * 1000)
    assert missing(tmp_path, database) is None
    rebuild(tmp_path, database, OPTIONS)
    with closing(Writer(tmp_path, options=OPTIONS)) as writer:
        writer.run_pass()
    assert sums(database) == before
    assert (tmp_path / "capture.old-1.db").read_bytes().startswith(b"rubbish")


def test_what_the_archive_no_longer_has_is_told(tmp_path: Path) -> None:
    live(tmp_path)
    first = next(iter(Archive(tmp_path).segments().values()))
    first.unlink()
    gone = missing(tmp_path, tmp_path / "capture.db")
    assert gone is not None
    assert gone > 0


def test_a_damaged_file_is_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    live(tmp_path)
    path = next(iter(Archive(tmp_path).segments().values()))
    path.write_bytes(path.read_bytes()[:-20])
    done = rebuild(tmp_path, tmp_path / "capture.db", OPTIONS)
    assert done.damaged in ([path.name], [])


def test_without_an_archive_nothing_is_touched(tmp_path: Path) -> None:
    (tmp_path / "capture.db").write_bytes(b"old")
    with pytest.raises(LlmtapError, match="nothing is archived"):
        rebuild(tmp_path, tmp_path / "capture.db", OPTIONS)
    assert (tmp_path / "capture.db").read_bytes() == b"old"


def test_trouble_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(tmp_path)
    before = sums(tmp_path / "capture.db")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmtap_launcher.store.rebuild._sync", full)
    with pytest.raises(OSError, match="No space"):
        rebuild(tmp_path, tmp_path / "capture.db", OPTIONS)
    assert sums(tmp_path / "capture.db") == before
    assert sorted(p.name for p in tmp_path.iterdir() if "rebuild" in p.name) == []
