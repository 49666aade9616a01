"""What only the writer may do: by ourselves, or by the one at work; its answer whichever way."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.store import errand
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.requests import Requests
from llmtap_launcher.store.writer import Writer
from support.wait import eventually


def here(writer: Writer) -> dict[str, Any]:
    return {"by": "ourselves"}


def test_by_ourselves(tmp_path: Path) -> None:
    assert errand.run(tmp_path, tmp_path / "capture.db", "prune", {}, here) == {"by": "ourselves"}
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()  # it was given back


def test_by_the_writer_at_work(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()
        thread = threading.Thread(target=lambda: found.append(errand.run(tmp_path, tmp_path / "c.db", "sing", {"n": 3}, here)))
        thread.start()
        asked: list[dict[str, Any]] = []

        def sing(question: dict[str, Any]) -> dict[str, Any]:
            asked.append(question)
            return {"by": "writer"}

        eventually(lambda: Requests(tmp_path).serve({"sing": sing}) and asked, "nothing was asked")
        thread.join(10)
    assert (asked, found) == ([{"n": 3}], [{"by": "writer"}])


def test_the_writer_ends_before_it_answers(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    with WriterLock(tmp_path) as lock:
        assert lock.acquire()
        thread = threading.Thread(target=lambda: found.append(errand.run(tmp_path, tmp_path / "c.db", "sing", {}, here)))
        thread.start()
        eventually(lambda: list((tmp_path / "requests").glob("*.json")), "nothing was asked")
    thread.join(10)
    assert found == [{"by": "ourselves"}]
    assert list((tmp_path / "requests").iterdir()) == []


def test_trouble_is_one_line(tmp_path: Path) -> None:
    def full(writer: Writer) -> dict[str, Any]:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(LlmtapError, match="free some disk space") as caught:
        errand.run(tmp_path, tmp_path / "c.db", "prune", {}, full)
    assert "\n" not in str(caught.value)
    with closing(Writer(tmp_path)):
        pass
