"""What a run has in the database, compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.replay.outcome import bring_in, compared, pairs, stored
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.lock import WriterLock
from llmtap_launcher.store.options import Options
from support.captures import Captures


@pytest.fixture
def captures(tmp_path: Path) -> Iterator[Captures]:
    with Captures(tmp_path) as captures:
        yield captures


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def again(captures: Captures, uid: str, text: str, reply: str | None, **fields: Any) -> str:
    about = {"tags": ["replay", "replay:r"], "metadata": {"replay": "r", "replay_of": uid}, "model": "new"}
    return captures.exchange(ask(text), reply, asked=about, served="new", **fields)


def test_pairs_are_the_latest_good_reply_to_each(captures: Captures) -> None:
    one, two, three = (captures.exchange(ask(text), text * 2) for text in ("one", "two", "three"))
    again(captures, one, "one", "something else")
    good = again(captures, one, "one", "oneone")
    again(captures, one, "one", None, outcome="upstream_error", status=500)
    bad = again(captures, two, "two", None, outcome="upstream_error", status=500)
    again(captures, "gone", "gone", "gone")
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        found = [(row[1], row[3], row[4]) for row in pairs(conn, "r")]
        assert found == [(one, good, 1), (two, bad, None)]
        assert (stored(conn, "r"), stored(conn, "s"), three not in str(found)) == (5, 0, True)


def test_both_sides(captures: Captures) -> None:
    for number in range(6):
        uid = captures.exchange(ask("same question"), "one two three four", usage=(10, 4), duration_ms=100.0 + number)
        again(captures, uid, "same question", "one two three four" if number < 2 else "one two three five", duration_ms=50.0)
    captures.exchange(ask("same question"), "not sent again")
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        made = compared(conn, "r", 2)
        assert (made["a"]["requests"], made["b"]["requests"]) == (6, 6)
        # one question six times is six pairs: they go by request, not by question
        assert (made["pairs"]["count"], made["pairs"]["equal_replies"], len(made["pairs"]["latest"])) == (6, 2, 2)
        assert made["replies"] == {"count": 6, "same": 2, "similarity": 0.75}
        whole = next(row for row in made["metrics"] if row["metric"] == "whole request, median")
        assert (whole["a"], whole["b"], whole["differs"]) == (102.5, 50.0, True)
        with pytest.raises(LlmtapError, match="no replies of a run 'other'"):
            compared(conn, "other")


def test_they_are_brought_in_where_no_writer_is_at_work(captures: Captures) -> None:
    uid = captures.exchange(ask("one"), "1")
    again(captures, uid, "one", "2")
    assert bring_in(captures.folder, captures.db, Options(), "r", 1) == 1
    # one is at work, and brings nothing
    again(captures, uid, "one", "3")
    with WriterLock(captures.folder) as lock:
        assert lock.acquire()
        assert bring_in(captures.folder, captures.db, Options(), "r", 2, patience_s=0.3) == 1
    assert bring_in(captures.folder, captures.db, Options(), "r", 2) == 2
