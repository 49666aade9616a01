"""What goes, what stays: by age, by size, and not a message more than nobody reaches."""

from __future__ import annotations

import random
import sqlite3
from pydoc_data.topics import topics
from typing import Any

import pytest

from llmtap.core.record import Choice, encode
from llmtap.spool.segment import Segment
from llmtap_launcher.store.ingest import Ingester, Item
from llmtap_launcher.store.options import Retention
from llmtap_launcher.store.prune import Pruned, Pruner
from support.records import START_US, begin, chat, end, summary

DAY = 86_400
WORDS = "".join(topics.values()).split()
PICTURE = {"type": "image", "data": "iVBORw0K" * 200}


def put(conn: sqlite3.Connection, uid: str, day: float, messages: list[Any], reply: Any = "answer", **more: Any) -> None:
    at = {"at_us": START_US + round(day * DAY * 1_000_000)}
    choices = reply if isinstance(reply, list) else [Choice(0, content=reply)]
    records = [begin(uid, chat(*messages, **more), **at), end(uid, summary=summary(*choices), deltas=[100, 20, 30], **at)]
    conn.execute("BEGIN")
    assert Ingester(conn).apply(Item(Segment("w0", "b", 1), 0, encode(r)) for r in records).poison == []
    conn.execute("COMMIT")


def prune(conn: sqlite3.Connection, day: float, *keep: float | None, **more: Any) -> Pruned:
    return Pruner(conn, Retention(*keep), lambda: START_US / 1e6 + day * DAY).run(**more)


def column(conn: sqlite3.Connection, sql: str) -> list[Any]:
    return [row[0] for row in conn.execute(sql)]


def texts(conn: sqlite3.Connection) -> set[str]:
    return set(column(conn, "SELECT b.text FROM messages m JOIN bodies b ON b.id = m.body_id"))


def sound(conn: sqlite3.Connection) -> None:
    """Nothing hangs in the air, and the search index knows the same."""
    assert column(conn, "PRAGMA integrity_check") == ["ok"]
    assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
    conn.execute("INSERT INTO bodies_fts(bodies_fts, rank) VALUES ('integrity-check', 1)")
    reached = (
        "SELECT count(*) FROM exchanges e WHERE (input_tip IS NOT NULL AND NOT EXISTS (SELECT 1 FROM messages WHERE "
        "hash = input_tip)) "
        "OR (output_tip IS NOT NULL AND NOT EXISTS (SELECT 1 FROM messages WHERE hash = output_tip))"
    )
    assert column(conn, reached) == [0]
    unused = "SELECT text FROM bodies b WHERE role <> 'tools' AND NOT EXISTS (SELECT 1 FROM messages WHERE body_id = b.id)"
    assert column(conn, unused) == []


def three_days(conn: sqlite3.Connection) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    put(conn, "a", 0, ["one"], "un", tools=tools)
    put(conn, "b", 1, ["one", {"role": "assistant", "content": "un"}, "two"], "deux", tools=tools)
    put(conn, "c", 2, [{"role": "user", "content": [{"type": "text", "text": "see"}, PICTURE]}], "vu")


def test_exchanges_go_and_take_what_nobody_else_reaches(conn: sqlite3.Connection) -> None:
    three_days(conn)
    done = prune(conn, 10, None, None, 9.5)
    assert (done.exchanges, done.messages) == (1, 0), "the next turn resends all of it"
    assert texts(conn) == {"one", "un", "two", "deux", "see", "vu"}
    assert column(conn, "SELECT n FROM conversations ORDER BY id") == [1, 1]
    done = prune(conn, 10, None, None, 8.5)
    assert (done.exchanges, done.messages) == (1, 4)
    assert texts(conn) == {"see", "vu"}
    assert column(conn, "SELECT count(*) FROM bodies WHERE role = 'tools'") == [0]
    assert column(conn, "SELECT count(*) FROM attachments") == [1]
    sound(conn)
    prune(conn, 10, None, None, 1)
    for table in ("exchanges", "messages", "bodies", "attachments", "body_attachments", "token_timings", "conversations"):
        assert column(conn, f"SELECT count(*) FROM {table}") == [0], table
    assert column(conn, "SELECT sum(requests) FROM usage_daily") == [3], "statistics stay"
    sound(conn)


def test_texts_go_first_and_the_numbers_stay(conn: sqlite3.Connection) -> None:
    three_days(conn)
    done = prune(conn, 10, 8.5, 8.5, None)
    assert (done.timings, done.bodies, done.exchanges) == (0, 2, 0), "times go with the texts of the same age"
    done = prune(conn, 10, 7, 8.5, None)
    assert done.timings == 3
    rows = conn.execute("SELECT uid, input_tip IS NULL, duration_ms, prompt_tokens FROM exchanges ORDER BY uid").fetchall()
    assert rows == [("a", 1, 1000.0, 5), ("b", 1, 1000.0, 5), ("c", 0, 1000.0, 5)]
    assert texts(conn) == {"see", "vu"}
    assert column(conn, "SELECT title FROM conversations ORDER BY id") == [None, "see"]
    assert prune(conn, 10, 7, 8.5, None) == Pruned(), "done is done"
    sound(conn)


def test_a_text_is_kept_as_long_as_somebody_younger_has_it(conn: sqlite3.Connection) -> None:
    three_days(conn)
    assert prune(conn, 10, None, 9.5, None).bodies == 1
    assert {"one", "un", "two"} <= texts(conn)
    sound(conn)


def test_other_choices_of_a_living_exchange_stay(conn: sqlite3.Connection) -> None:
    put(conn, "old", 0, ["one"], "b")
    put(conn, "new", 5, ["one"], [Choice(0, content="a"), Choice(1, content="b")])
    assert prune(conn, 10, None, None, 7).exchanges == 1
    assert texts(conn) == {"one", "a", "b"}
    prune(conn, 10, None, None, 1)
    assert texts(conn) == set()
    sound(conn)


def test_raw_bodies_are_texts_too(conn: sqlite3.Connection) -> None:
    record = begin("x", b'{"secret": 1}', endpoint="other", path="/odd")
    conn.execute("BEGIN")
    Ingester(conn).apply([Item(Segment("w0", "b", 1), 0, encode(record))])
    conn.execute("COMMIT")
    assert "secret" in column(conn, "SELECT params_json FROM exchanges")[0]
    assert prune(conn, 10, None, 5, None).bodies == 1
    assert column(conn, "SELECT params_json FROM exchanges") == [None]


def test_what_was_said_over_a_websocket_is_text_too(conn: sqlite3.Connection) -> None:
    said = [{"at_ms": 1.5, "from": "client", "bytes": 5, "text": "hello"}]
    for uid in "ab":
        records = [
            begin(uid, b"", is_json=False, endpoint="realtime", path="/v1/realtime"),
            end(uid, summary=None, messages=said),
        ]
        conn.execute("BEGIN")
        assert Ingester(conn).apply(Item(Segment("w0", "b", 1), 0, encode(r)) for r in records).poison == []
        conn.execute("COMMIT")
    assert column(conn, "SELECT content FROM websocket_messages") == ["hello", "hello"]
    prune(conn, 10, None, 5, None)
    assert column(conn, "SELECT count(*) FROM websocket_messages") == [0]
    assert column(conn, "SELECT count(*) FROM exchanges") == [2]
    sound(conn)


def test_a_correction_goes_with_its_rating(conn: sqlite3.Connection) -> None:
    put(conn, "a", 0, ["one"], "un")
    put(conn, "b", 0.1, ["one"], "better")
    (better,) = column(conn, "SELECT output_tip FROM exchanges WHERE uid = 'b'")
    conn.execute("DELETE FROM token_timings WHERE exchange_id = (SELECT id FROM exchanges WHERE uid = 'b')")
    conn.execute("DELETE FROM exchanges WHERE uid = 'b'")
    conn.execute(
        "INSERT INTO ratings(exchange_id, uid, name, source, at, correction) SELECT id, uid, 'thumb', 'user', '', ? "
        "FROM exchanges",
        (better,),
    )
    prune(conn, 10, None, 5, None)
    assert texts(conn) == {"one", "better"}
    prune(conn, 10, None, None, 5)
    assert texts(conn) == set()
    sound(conn)


def test_past_a_size_the_oldest_go(conn: sqlite3.Connection) -> None:
    dice = random.Random(3)
    for n in range(900):
        put(conn, f"u{n:03d}", n / 1000, [" ".join(dice.choices(WORDS, k=500))])
    pruner = Pruner(conn, Retention(max_bytes=2_500_000))
    assert pruner.size() > 2_500_000
    done = pruner.run()
    assert pruner.size() <= 2_250_000
    left = column(conn, "SELECT uid FROM exchanges ORDER BY uid")
    assert 0 < len(left) < 900
    assert left == [f"u{n:03d}" for n in range(900 - len(left), 900)]
    assert done.exchanges == 900 - len(left)
    assert done.pages > 0
    (free,) = column(conn, "PRAGMA freelist_count")
    assert free < 500
    assert pruner.run() == Pruned()
    sound(conn)


def test_a_budget_ends_it_early_and_it_goes_on(conn: sqlite3.Connection) -> None:
    for n in range(450):
        put(conn, f"u{n:03d}", 0, [f"question {n}"])
    pruner = Pruner(conn, Retention(exchanges_days=1), lambda: START_US / 1e6 + 10 * DAY)
    first = pruner.run(0)
    assert (first.exchanges, first.more) == (200, True)
    assert pruner.run().exchanges == 250
    sound(conn)


def test_a_failing_batch_changes_nothing(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    three_days(conn)

    def broken(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Pruner, "_drop_unreached", broken)
    with pytest.raises(sqlite3.OperationalError):
        prune(conn, 10, None, None, 1)
    assert not conn.in_transaction
    assert column(conn, "SELECT count(*) FROM exchanges") == [3]


def test_hours_become_days(conn: sqlite3.Connection) -> None:
    for hour in range(4):
        put(conn, f"u{hour}", hour / 24, ["x"])
    put(conn, "late", 20, ["x"])
    before = conn.execute("SELECT metric, bucket, sum(n) FROM latency_hist GROUP BY 1, 2").fetchall()
    prune(conn, 21, None, None, 5)
    assert column(conn, "SELECT DISTINCT hour FROM latency_hist ORDER BY 1") == ["2026-11-21", "2026-12-11T01"]
    assert conn.execute("SELECT metric, bucket, sum(n) FROM latency_hist GROUP BY 1, 2").fetchall() == before
    assert column(conn, "SELECT hour FROM usage_hourly") == ["2026-12-11T01"]
    assert column(conn, "SELECT day FROM usage_daily ORDER BY 1") == ["2026-11-21", "2026-12-11"]


def test_what_is_due(conn: sqlite3.Connection) -> None:
    three_days(conn)
    pruner = Pruner(conn, Retention(7, 8.5, 9.5), lambda: START_US / 1e6 + 10 * DAY)
    assert pruner.due() == {"timings": 3, "bodies": 2, "exchanges": 1}
    assert Pruner(conn, Retention(9, 9, 9)).due()["timings"] == 0
