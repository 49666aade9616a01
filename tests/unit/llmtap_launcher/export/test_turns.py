"""The last selected turn of every conversation, each once."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from llmtap_launcher.export.options import Wanted
from llmtap_launcher.export.paths import Paths
from llmtap_launcher.export.query import where
from llmtap_launcher.export.turns import Seen, turns
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures

U1, U2 = {"role": "user", "content": "one"}, {"role": "user", "content": "two"}
A1 = {"role": "assistant", "content": "yes"}


def found(captures: Captures, *, every: bool = False, duplicates: bool = False, **wanted: Any) -> tuple[list[str], Seen]:
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        sql, values = where(conn, Wanted(**wanted))
        seen = Seen()
        listed = turns(conn, Paths(conn), sql, values, seen, every=every, duplicates=duplicates)
        uids = dict(conn.execute("SELECT id, uid FROM exchanges").fetchall())
        assert len(listed) == len(list(listed))
        return [uids[exchange] for exchange, _ in listed], seen


def test_the_last_turn_holds_the_others(captures: Captures) -> None:
    first = captures.exchange([U1], "yes")
    second = captures.exchange([U1, A1, U2], "no")
    other = captures.exchange([U2], "no")
    uids, seen = found(captures)
    assert uids == [other, second]  # newest first
    assert (seen.selected, seen.superseded, seen.duplicates) == (3, 1, 0)
    assert found(captures, every=True)[0] == [other, second, first]


def test_a_broken_last_turn_leaves_the_one_before(captures: Captures) -> None:
    first = captures.exchange([U1], "yes")
    captures.exchange([U1, A1, U2], "n", outcome="client_abort")
    assert found(captures)[0] == [first]


def test_branches_are_rows_of_their_own(captures: Captures) -> None:
    captures.exchange([U1], "yes")
    one = captures.exchange([U1, A1, U2], "left")
    two = captures.exchange([U1, A1, U2], "right")
    assert found(captures)[0] == [two, one]


def test_the_same_again_is_one(captures: Captures) -> None:
    captures.exchange([U1], "yes")
    again = captures.exchange([U1], "yes")
    uids, seen = found(captures)
    assert (uids, seen.duplicates) == ([again], 1)
    assert len(found(captures, duplicates=True)[0]) == 2


def test_said_again_after_it_had_gone_on(captures: Captures) -> None:
    captures.exchange([U1], "yes")
    second = captures.exchange([U1, A1, U2], "no")
    captures.exchange([U1], "yes")
    uids, seen = found(captures)
    assert (uids, seen.selected, seen.superseded) == ([second], 3, 2)


def test_clients_that_trim(captures: Captures) -> None:
    captures.exchange([U1], "  yes \n\n", asked={"key_name": "k"})
    second = captures.exchange([U1, A1, U2], "no", asked={"key_name": "k"})
    uids, seen = found(captures)
    assert (uids, seen.superseded) == ([second], 1)


def test_records_that_came_late(captures: Captures) -> None:
    """A turn that was stored before the one it goes on from."""
    second = captures.exchange([U1, A1, U2], "no", asked={"at_us": 1_763_800_000_000_000})
    captures.store()
    captures.exchange([U1], "yes", asked={"at_us": 1_763_700_000_000_000})
    assert found(captures)[0] == [second]
