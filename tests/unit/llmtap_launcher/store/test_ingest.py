"""Batches into rows: any order, any number of times, poison aside, conversations linked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.config import Price
from llmtap.core.record import Begin, Choice, End, encode
from llmtap.policy.pricing import own_rates
from llmtap.spool.segment import Segment
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.ingest import Applied, Ingester, Item
from support.records import START_US, begin, chat, end, summary

SEGMENT = Segment("w0", "b", 1)


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_writer(tmp_path / "c.db")) as opened:
        opened.row_factory = sqlite3.Row
        opened.execute("BEGIN")
        yield opened


def item(record: Begin | End | dict[str, Any] | bytes) -> Item:
    data = record if isinstance(record, bytes) else orjson.dumps(record) if isinstance(record, dict) else encode(record)
    return Item(SEGMENT, 0, data)


def apply(conn: sqlite3.Connection, *records: Begin | End | dict[str, Any] | bytes) -> Applied:
    return Ingester(conn).apply(map(item, records))


def row(conn: sqlite3.Connection, uid: str = "u1") -> dict[str, Any]:
    return dict(conn.execute("SELECT * FROM exchanges WHERE uid = ?", (uid,)).fetchone())


def everything(conn: sqlite3.Connection) -> dict[str, Any]:
    """All that does not depend on the order of arrival."""
    out: dict[str, Any] = {k: v for k, v in row(conn).items() if k != "id"}
    out["deltas"] = conn.execute("SELECT deltas FROM token_timings").fetchone()[0]
    out["chain"] = chain(conn, out["output_tip"])
    out["count"] = conn.execute("SELECT count(*) FROM exchanges").fetchone()[0]
    return out


def chain(conn: sqlite3.Connection, tip: bytes | None) -> list[str | None]:
    found = conn.execute(
        "WITH RECURSIVE up(id, parent_id, depth, body_id) AS (SELECT id, parent_id, depth, body_id FROM messages WHERE hash = ? "
        "UNION ALL SELECT m.id, m.parent_id, m.depth, m.body_id FROM messages m JOIN up ON m.id = up.parent_id) "
        "SELECT b.text FROM up JOIN bodies b ON b.id = body_id ORDER BY depth",
        (tip,),
    )
    return [r[0] for r in found]


def count(conn: sqlite3.Connection, table: str) -> int:
    return int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


BEGIN = begin(body=chat("hello", tools=[{"type": "function"}]), stream=True)
END = end(deltas=[1000, 50, 50])


def test_begin_and_end_make_one_row(conn: sqlite3.Connection) -> None:
    assert apply(conn, BEGIN, END).records == 2
    found = row(conn)
    assert (found["outcome"], found["endpoint"], found["model_response"], found["boot"]) == ("ok", "chat", "served", "w0-b")
    assert chain(conn, found["input_tip"]) == ["hello"]
    assert chain(conn, found["output_tip"]) == ["hello", "hi there"]
    assert conn.execute("SELECT json FROM bodies WHERE hash = ?", (found["tools_hash"],)).fetchone()[0] == '[{"type":"function"}]'
    view = dict(conn.execute("SELECT * FROM requests").fetchone())
    assert (view["prompt"], view["reply"], view["tokens_per_second"]) == ("hello", "hi there", 10.0)


def test_a_begin_alone_is_open(conn: sqlite3.Connection) -> None:
    apply(conn, BEGIN)
    assert row(conn)["outcome"] == "open"


def test_every_order_batching_and_repetition_gives_the_same(conn: sqlite3.Connection) -> None:
    apply(conn, BEGIN, END)
    expected = everything(conn)
    for records in permutations([BEGIN, END, BEGIN, END]):
        for cuts in range(8):
            conn.execute("ROLLBACK")
            conn.execute("BEGIN")
            batches: list[list[Begin | End]] = [[]]
            for n, record in enumerate(records):
                batches[-1].append(record)
                if cuts >> n & 1:
                    batches.append([])
            ingester = Ingester(conn)
            for batch in batches:
                assert ingester.apply(map(item, batch)).poison == []
            assert everything(conn) == expected


def test_an_end_alone_has_what_it_knows(conn: sqlite3.Connection) -> None:
    apply(conn, END)
    found = row(conn)
    assert (found["outcome"], found["started_us"], found["started_at"]) == ("ok", START_US, "2026-11-21T01:35:23.456Z")
    assert (found["worker"], found["endpoint"], found["input_tip"]) == ("w0", None, None)
    assert chain(conn, found["output_tip"]) == ["hi there"]


def test_a_lost_exchange_that_ends_after_all_is_corrected(conn: sqlite3.Connection) -> None:
    apply(conn, BEGIN)
    conn.execute("UPDATE exchanges SET outcome = 'lost'")
    apply(conn, BEGIN)
    assert row(conn)["outcome"] == "lost"
    apply(conn, END)
    assert row(conn)["outcome"] == "ok"


def test_the_turns_of_a_conversation_are_one_chain(conn: sqlite3.Connection) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    # what a client sends back differs in spelling from what the server said
    asked_again = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    history: list[Any] = [{"role": "system", "content": "be brief"}, "weather?"]
    tool_choice = Choice(0, reasoning="hm", finish_reason="tool_calls")
    record = orjson.loads(encode(end("u1", summary=summary(tool_choice))))
    record["summary"]["choices"][0]["tool_calls"] = [{"index": 0, "id": "c1", "type": "function", **call["function"]}]  # type: ignore[dict-item]
    ingester = Ingester(conn)
    ingester.apply([item(begin("u1", chat(*history))), item(record)])
    history += [
        {"role": "assistant", "content": "", "tool_calls": [asked_again]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    ingester.apply([item(begin("u2", chat(*history))), item(end("u2", "take an umbrella"))])
    history += [{"role": "assistant", "content": "take an umbrella", "refusal": None}, "thanks"]
    Ingester(conn).apply([item(begin("u3", chat(*history))), item(end("u3", "welcome"))])
    assert [row(conn, u)["n_messages"] for u in ("u1", "u2", "u3")] == [2, 4, 6]
    expected = ["be brief", "weather?", None, "rain", "take an umbrella", "thanks", "welcome"]
    assert chain(conn, row(conn, "u3")["output_tip"]) == expected
    assert count(conn, "messages") == count(conn, "bodies") == len(expected)
    leaves = (
        "SELECT uid FROM exchanges e WHERE NOT EXISTS "
        "(SELECT 1 FROM messages m JOIN messages c ON c.parent_id = m.id WHERE m.hash = e.output_tip)"
    )
    assert [r[0] for r in conn.execute(leaves)] == ["u3"]


def test_several_choices_are_siblings(conn: sqlite3.Connection) -> None:
    apply(conn, begin(), end(summary=summary(Choice(0, content="a"), Choice(1, content="b"))))
    found = row(conn)
    tips = [bytes.fromhex(t) for t in orjson.loads(found["response_meta_json"])["output_tips"]]
    assert tips[0] == found["output_tip"]
    assert [chain(conn, t) for t in tips] == [["hello", "a"], ["hello", "b"]]


def test_an_end_before_its_begin_keeps_all_choices(conn: sqlite3.Connection) -> None:
    last = end(summary=summary(Choice(0, content="a"), Choice(1, content="b")))
    apply(conn, last)
    apply(conn, begin())
    tips = [bytes.fromhex(t) for t in orjson.loads(row(conn)["response_meta_json"])["output_tips"]]
    assert [chain(conn, t) for t in tips] == [["hello", "a"], ["hello", "b"]]


def test_reasoning_of_every_exchange_survives_the_sharing_of_words(conn: sqlite3.Connection) -> None:
    for uid, thoughts in (("u1", "first"), ("u2", "second"), ("u3", None), ("u4", "first")):
        apply(
            conn,
            begin(uid, chat(uid)),
            end(uid, summary=summary(Choice(0, content="42", reasoning=thoughts, finish_reason="stop"))),
        )
    (shared,) = conn.execute("SELECT json FROM bodies WHERE text = '42'").fetchall()
    assert orjson.loads(shared[0])["reasoning"] == "first"
    extras = [row(conn, uid)["response_meta_json"] for uid in ("u1", "u2", "u3", "u4")]
    assert extras == [None, '{"reasoning":"second"}', '{"reasoning":null}', None]
    both = summary(Choice(0, content="42", reasoning="x"), Choice(1, content="new", reasoning="y"))
    apply(conn, begin("u5"), end("u5", summary=both))
    assert orjson.loads(row(conn, "u5")["response_meta_json"])["reasoning"] == {"0": "x"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops", "unexpected character"),
        (b"[1]", "not an object"),
        (b'{"t":"begin","uid":"u"}', "version None"),
        (b'{"v":2,"t":"begin","uid":"u"}', "version 2"),
        (b'{"v":1,"t":"later","uid":"u"}', "unknown record type"),
        (b'{"v":1,"t":"begin"}', "no uid"),
        (b'{"v":1,"t":"begin","uid":""}', "no uid"),
        (b'{"v":1,"t":"begin","uid":"u"}', "KeyError: 'at_us'"),
        (b'{"v":1,"t":"end","uid":"u","at_us":1,"outcome":"fine"}', "ValueError: unknown outcome"),
        (b'{"v":1,"t":"end","uid":"u","at_us":1,"outcome":"ok","summary":5}', "AttributeError"),
        (b'{"v":1,"t":"begin","uid":"u","at_us":%d}' % 10**18, "ValueError"),
    ],
)
def test_poison_is_reported_and_the_rest_goes_in(conn: sqlite3.Connection, line: bytes, reason: str) -> None:
    applied = apply(conn, begin("before"), line, begin("after"), end("after"))
    assert [p.reason.startswith(reason) for p in applied.poison] == [True]
    assert applied.poison[0].item.json == line
    assert applied.records == 4
    assert [r[0] for r in conn.execute("SELECT uid FROM exchanges ORDER BY id")] == ["before", "after"]


def test_one_poisoned_half_spares_the_other(conn: sqlite3.Connection) -> None:
    applied = apply(conn, BEGIN, {"v": 1, "t": "end", "uid": "u1"})
    assert len(applied.poison) == 1
    assert row(conn)["outcome"] == "open"
    applied = apply(conn, {"v": 1, "t": "begin", "uid": "u2"}, end("u2"))
    assert len(applied.poison) == 1
    assert row(conn, "u2")["outcome"] == "ok"


def test_poison_that_sqlite_refuses_takes_nothing_with_it(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TRIGGER refuse BEFORE INSERT ON exchanges WHEN new.uid = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END")
    ingester = Ingester(conn)
    applied = ingester.apply([item(begin("bad", chat("only here"))), item(begin("good", chat("only here"))), item(end("good"))])
    assert [p.reason for p in applied.poison] == ["IntegrityError: no"]
    assert chain(conn, row(conn, "good")["output_tip"]) == ["only here", "hi there"]


def test_trouble_of_the_database_is_raised(conn: sqlite3.Connection) -> None:
    conn.execute("DROP TABLE token_timings")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        apply(conn, BEGIN, END)


def test_gaps_are_handed_on(conn: sqlite3.Connection) -> None:
    gap = {"v": 1, "t": "gap", "worker": "w0", "at_us": START_US + 5, "dropped": {"records_disk_full": 3}}
    applied = apply(conn, gap)
    assert applied.gaps == [gap]
    assert applied.poison == []
    assert applied.newest_us == START_US + 5


def test_an_exchange_without_any_messages(conn: sqlite3.Connection) -> None:
    apply(
        conn,
        begin(endpoint="embeddings", path="/v1/embeddings", body=b'{"model":"e","input":"x"}'),
        end(text=None, summary=None, body=b"{}", body_is_json=True),
    )
    found = row(conn)
    assert (found["input_tip"], found["output_tip"], found["n_messages"], found["params_json"]) == (
        None,
        None,
        None,
        '{"model":"e"}',
    )
    assert count(conn, "bodies") == 0


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_size_of_a_streamed_body_comes_with_the_end(conn: sqlite3.Connection, order: tuple[int, ...]) -> None:
    asked = Begin("u1", START_US, "w0", "POST", "/v1/audio/transcriptions", "transcriptions", body_dropped="streamed")
    replied = End("u1", START_US + 5, "ok", status=200, request_bytes=12_345)
    records = [asked, replied, asked]
    for index in order:
        apply(conn, records[index])
    assert row(conn)["request_bytes"] == 12_345
    assert orjson.loads(row(conn)["params_json"]) == {"body_dropped": "streamed"}


def test_what_was_said_over_a_websocket(conn: sqlite3.Connection) -> None:
    said = [
        {"at_ms": 1.5, "from": "client", "bytes": 5, "text": "hello"},
        {"at_ms": 2.0, "from": "server", "bytes": 90_000, "base64": "AAE=", "truncated": True},
    ]
    record = End("u1", START_US, "ok", status=101, request_bytes=5, messages=said, messages_dropped=3)
    for _ in range(2):
        assert apply(conn, begin(), record).poison == []
    found = conn.execute("SELECT n, at_ms, from_client, content, bytes FROM websocket_messages ORDER BY n").fetchall()
    assert [tuple(r) for r in found] == [(0, 1.5, 1, "hello", 5), (1, 2.0, 0, b"\0\1", 90_000)]
    assert orjson.loads(row(conn)["response_meta_json"])["messages_dropped"] == 3


@pytest.mark.parametrize("messages", [[5], ["text"], [{"base64": "!"}]])
def test_messages_that_are_none_are_poison(conn: sqlite3.Connection, messages: list[Any]) -> None:
    applied = apply(conn, begin(), {"v": 1, "t": "end", "uid": "u1", "at_us": START_US, "outcome": "ok", "messages": messages})
    assert len(applied.poison) == 1 and row(conn)["outcome"] == "open"


def test_statistics_and_conversations_whatever_the_order(conn: sqlite3.Connection) -> None:
    def statistics() -> list[Any]:
        return [
            [tuple(r) for r in conn.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4, 5")]
            for table in ("usage_daily", "latency_hist")
        ] + [[tuple(r)[1:] for r in conn.execute("SELECT * FROM conversations")]]

    asked = begin(body=chat("hello"), key_name="ci")
    apply(conn, asked, END)
    expected = statistics()
    assert expected[0] == [("2026-11-21", "ci", "served", "a", 1, 0, 5, 10, 0, 0)]
    assert {r[3] for r in expected[1]} == {"ttft_ms", "duration_ms", "itl_ms", "tokens_per_second"}
    assert len(expected[2]) == 1
    for records in permutations([asked, END, asked, END]):
        conn.execute("ROLLBACK")
        conn.execute("BEGIN")
        ingester = Ingester(conn)
        for record in records:
            ingester.apply([item(record)])
        assert statistics() == expected


def test_a_batch_that_is_tried_again_counts_once(conn: sqlite3.Connection) -> None:
    ingester = Ingester(conn)
    for _ in range(2):
        conn.execute("SAVEPOINT batch")
        ingester.apply(map(item, [BEGIN, END]))
        if not conn.execute("SELECT 1 FROM usage_daily WHERE requests = 2").fetchone():
            conn.execute("ROLLBACK TO batch")
            ingester.forget()
    ingester.apply(map(item, [BEGIN, END]))
    assert [tuple(r) for r in conn.execute("SELECT requests FROM usage_daily")] == [(1,)]


def test_poison_counts_nothing(conn: sqlite3.Connection) -> None:
    bad = orjson.loads(encode(END)) | {"outcome": "odd"}
    assert len(apply(conn, BEGIN, bad).poison) == 1
    assert count(conn, "usage_daily") == 0
    assert count(conn, "conversations") == 1


def test_costs_at_ingest(conn: sqlite3.Connection) -> None:
    rates = own_rates([Price(model="served", input_usd_per_million=2, output_usd_per_million=8)])
    Ingester(conn, rates).apply(map(item, [BEGIN, END]))
    assert row(conn)["cost_nanousd"] == 5 * 2000 + 10 * 8000
    assert conn.execute("SELECT model_glob FROM prices WHERE id = ?", (row(conn)["price_id"],)).fetchone()[0] == "served"
    assert conn.execute("SELECT cost_nanousd FROM usage_daily").fetchone()[0] == row(conn)["cost_nanousd"]
