"""The chain: shared histories are stored once, whatever is remembered."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.store import chains
from llmtap_launcher.store.canonical import Body, body_of, link
from llmtap_launcher.store.chains import Chains


def said(*texts: str) -> list[Body]:
    return [body_of({"role": "user", "content": t}) for t in texts]


def count(conn: sqlite3.Connection) -> tuple[int, int]:
    return tuple(conn.execute("SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM bodies)").fetchone())  # type: ignore[return-value]


def texts(conn: sqlite3.Connection, tip: bytes | None) -> list[tuple[int, str]]:
    walk = (
        "WITH RECURSIVE up(id, parent_id, depth, body_id) AS (SELECT id, parent_id, depth, body_id FROM messages WHERE hash = ? "
        "UNION ALL SELECT m.id, m.parent_id, m.depth, m.body_id FROM messages m JOIN up ON m.id = up.parent_id) "
        "SELECT depth, text FROM up JOIN bodies b ON b.id = body_id ORDER BY depth"
    )
    return [tuple(row) for row in conn.execute(walk, (tip,))]


def test_a_longer_history_adds_only_what_is_new(conn: sqlite3.Connection) -> None:
    store = Chains(conn)
    first = store.extend(None, said("a", "b"))
    again = store.extend(None, said("a", "b"))
    longer = store.extend(None, said("a", "b", "c"))
    assert first == again == link(link(b"", said("a")[0].hash), said("b")[0].hash)
    assert longer == store.extend(first, said("c"))
    assert count(conn) == (3, 3)
    assert texts(conn, longer) == [(0, "a"), (1, "b"), (2, "c")]


def test_same_words_under_another_history_are_one_body_and_two_messages(conn: sqlite3.Connection) -> None:
    store = Chains(conn)
    store.extend(None, said("a", "x"))
    store.extend(None, said("b", "x"))
    assert count(conn) == (4, 3)


def test_nothing_extends_to_its_parent(conn: sqlite3.Connection) -> None:
    store = Chains(conn)
    tip = store.extend(None, said("a"))
    assert store.extend(tip, []) == tip
    assert store.extend(None, []) is None


def test_a_parent_that_is_gone_leaves_a_root(conn: sqlite3.Connection) -> None:
    tip = Chains(conn).extend(b"x" * 16, said("a"))
    assert texts(conn, tip) == [(0, "a")]


def test_put_says_what_is_new(conn: sqlite3.Connection) -> None:
    store = Chains(conn)
    (body,) = said("a")
    body_id, created = store.put(body)
    assert created
    assert store.put(body) == (body_id, False)
    store.forget()
    assert store.put(body) == (body_id, False)
    assert conn.execute("SELECT rowid FROM bodies_fts WHERE bodies_fts MATCH 'a'").fetchall() == [(body_id,)]


@given(histories=st.lists(st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.booleans()), max_size=12))
def test_any_histories_read_back(histories: list[tuple[list[str], bool]]) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as memory, pytest.MonkeyPatch.context() as patched:
        memory.execute("CREATE TABLE bodies (id INTEGER PRIMARY KEY, hash BLOB UNIQUE, role, text, json, bytes)")
        memory.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, hash BLOB UNIQUE, parent_id INT, depth INT, body_id INT)")
        patched.setattr(chains, "_REMEMBERED", 3)
        store = Chains(memory)
        for history, forget in histories:
            if forget:
                store.forget()
            tip = store.extend(None, said(*history))
            assert [t for _, t in texts(memory, tip)] == history
        prefixes = {tuple(h[: n + 1]) for h, _ in histories for n in range(len(h))}
        assert count(memory)[0] == len(prefixes)


def test_attachments_are_stored_once(conn: sqlite3.Connection) -> None:
    picture = {"type": "image", "data": "iVBORw0K" * 200}
    messages = [{"role": "user", "content": [{"type": "text", "text": text}, picture]} for text in ("one", "two", "one")]
    chains_ = Chains(conn)
    chains_.extend(None, [body_of(m) for m in messages])
    assert conn.execute("SELECT mime, bytes, length(content) FROM attachments").fetchall() == [("image/png", 1200, 1200)]
    assert conn.execute("SELECT count(*), count(DISTINCT body_id) FROM body_attachments").fetchone() == (2, 2)
    (json,) = conn.execute("SELECT json FROM bodies WHERE id = 1").fetchone()
    assert "attachment:" in json
    assert "iVBOR" not in json


def test_how_many_were_there(conn: sqlite3.Connection) -> None:
    it = Chains(conn)
    hashes, known = it.link_all(None, said("a", "b"))
    assert known == 0
    again, known = Chains(conn).link_all(None, said("a", "b", "c"))
    assert (again[:2], known) == (hashes, 2)
    assert it.link_all(hashes[1], said("c")) == (again[2:], 1)
    assert it.link_all(None, []) == ([], 0)
