"""The log: a file a size, any thread, every process its own, no trouble for the calls."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import orjson
import pytest

from llmtap.core.errors import SpoolError
from llmtap.core.record import Begin
from llmtap.middleware.journal import Journal
from llmtap.spool.reader import read
from llmtap.spool.segment import scan


def begin(uid: str) -> Begin:
    return Begin(uid, 1, "w", "POST", "/v1/completions", "completions", body=b'{"prompt":"%s"}' % (b"x" * 300), body_is_json=True)


def uids(folder: Path) -> list[str]:
    lines = (line for segment in scan(folder / "spool") for _, line in read(folder / "spool" / segment.filename))
    return [orjson.loads(line)["uid"] for line in lines]  # type: ignore[arg-type]


def test_files_by_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2000)
    for n in range(20):
        journal.write(begin(f"u{n}"))
    journal.close()
    assert uids(tmp_path) == [f"u{n}" for n in range(20)]
    assert len(scan(tmp_path / "spool")) > 3
    assert all(size <= 2000 for size in scan(tmp_path / "spool").values())
    journal.write(begin("late"))
    assert "late" not in uids(tmp_path)


def test_threads(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 20_000)

    def work(name: int) -> None:
        for n in range(50):
            journal.write(begin(f"{name}.{n}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {journal.new_id() for _ in range(1000)}
    journal.close()
    assert len(ids) == 1000
    assert sorted(uids(tmp_path)) == sorted(f"{name}.{n}" for name in range(8) for n in range(50))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_writes_a_file_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1_000_000)
    journal.write(begin("parent"))
    child = os.fork()
    if child == 0:
        try:
            journal.write(begin("child"))
            journal.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    journal.write(begin("parent again"))
    journal.close()
    assert sorted(uids(tmp_path)) == ["child", "parent", "parent again"]
    assert len(scan(tmp_path / "spool")) == 2


def test_a_second_between_two_flushes(tmp_path: Path) -> None:
    now = [0.0]
    journal = Journal(tmp_path, 1000, clock=lambda: now[0])
    assert not journal.due()
    now[0] = 1.5
    assert [journal.due(), journal.due()] == [True, False]
    journal.sync()
    journal.close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file"):
        Journal(tmp_path / "file", 1000)


def test_without_a_folder() -> None:
    journal = Journal(None, 1000)
    assert len(journal.new_id()) == 26
    journal.write(begin("u"))
    assert (journal.due(), journal.dropped) == (False, {})
    journal.sync()
    journal.close()
