"""Turns into conversations: by what was replied, whatever the client edits, in whatever order the records come."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.record import Begin, Choice, End, encode
from llmtap.spool.segment import Segment
from llmtap_launcher.store import conversations as module
from llmtap_launcher.store.checksum import checksums, rows
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.ingest import Ingester, Item
from support.records import START_US, begin, chat, end, summary

SECOND = 1_000_000
Pair = tuple[Begin, End]


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(open_writer(tmp_path / "c.db")) as opened:
        opened.execute("BEGIN")
        yield opened


def turn(
    uid: str, messages: Sequence[dict[str, Any] | str], reply: str, at_s: float, *, key: str | None = None, **more: Any
) -> Pair:
    """An exchange that begins after `at_s` seconds and takes one."""
    at_us = START_US + round(at_s * SECOND)
    asked = begin(uid, chat(*messages), at_us=at_us, key_name=key, **more)
    return asked, end(uid, reply, at_us=at_us + SECOND)


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def apply(conn: sqlite3.Connection, *pairs: Pair, ingester: Ingester | None = None) -> Ingester:
    ingester = ingester or Ingester(conn)
    for pair in pairs:
        applied = ingester.apply(Item(Segment("w0", "b", 1), 0, encode(record)) for record in pair)
        assert applied.poison == []
    return ingester


def groups(conn: sqlite3.Connection) -> list[list[str]]:
    """The conversations, each by the uids of its turns."""
    found: dict[int, list[str]] = {}
    for number, uid in conn.execute("SELECT conversation_id, uid FROM exchanges ORDER BY started_us, uid"):
        found.setdefault(number, []).append(uid)
    counted = dict(conn.execute("SELECT id, n FROM conversations").fetchall())
    assert counted == {number: len(uids) for number, uids in found.items()}
    return sorted(found.values())


def test_a_chat_is_one_conversation(conn: sqlite3.Connection) -> None:
    history: list[Any] = [{"role": "system", "content": "be brief"}, "  why is\n the sky blue? "]
    first = turn("a", history, "scattering", 0)
    history += [said("scattering"), "and at dusk?"]
    second = turn("b", history, "longer way", 10)
    other = turn("x", [*history[:1], "hello"], "hi", 11)
    apply(conn, first, second, other)
    assert groups(conn) == [["a", "b"], ["x"]]
    row = conn.execute("SELECT * FROM conversations ORDER BY id").fetchone()
    tips = {uid: (input_tip, tip) for uid, input_tip, tip in conn.execute("SELECT uid, input_tip, output_tip FROM exchanges")}
    assert row[1:] == (
        tips["a"][0],
        tips["b"][1],
        "2026-11-21T01:35:23.456Z",
        "2026-11-21T01:35:33.456Z",
        2,
        None,
        "served",
        "why is the sky blue?",
    )


def test_null_fields_that_servers_add_do_not_matter(conn: sqlite3.Connection) -> None:
    back = {"role": "assistant", "content": "hi", "refusal": None, "audio": None, "tool_calls": None, "reasoning_content": "hm"}
    apply(conn, turn("a", ["hello"], "hi", 0), turn("b", ["hello", back, "more"], "ok", 5))
    assert groups(conn) == [["a", "b"]]


def test_a_client_that_trims_replies(conn: sqlite3.Connection) -> None:
    apply(
        conn,
        turn("a", ["hello"], "\n\nhi  there\n", 0),
        turn("b", ["hello", said("hi there"), "more"], " ok ", 5),
        turn("c", ["hello", said("hi there"), "more", said("ok"), "bye"], "bye", 9),
        turn("d", ["hello", said("hi other"), "more"], "ok", 12),
    )
    assert groups(conn) == [["a", "b", "c"], ["d"]]


def test_the_apis_meet(conn: sqlite3.Connection) -> None:
    """Chat first, then the same talk through the Responses, Messages and Ollama APIs."""
    apply(conn, turn("chat", ["hello"], "hi", 0))
    at = {"is_json": True, "stream": False}
    responses = orjson.dumps(
        {
            "model": "m",
            "input": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "hi"}]},
                {"role": "user", "content": "1"},
            ],
        }
    )
    messages = orjson.dumps(
        {
            "model": "m",
            "max_tokens": 5,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
                {"role": "user", "content": "2"},
            ],
        }
    )
    ollama = chat("hello", said("hi"), "3")
    for n, (body, endpoint, path) in enumerate(
        ((responses, "responses", "/v1/responses"), (messages, "messages", "/v1/messages"), (ollama, "other_chat", "/api/chat")),
        1,
    ):
        asked = begin(f"u{n}", body, endpoint=endpoint, path=path, at_us=START_US + n * 5 * SECOND, **at)
        apply(conn, (asked, end(f"u{n}", "fine", at_us=START_US + n * 5 * SECOND + SECOND)))
    assert groups(conn) == [["chat", "u1", "u2", "u3"]]


def test_the_responses_api_names_the_turn_before(conn: sqlite3.Connection) -> None:
    def ask(uid: str, at_s: int, key: str, previous: str | None, answer: str) -> Pair:
        body = orjson.dumps({"model": "m", "input": uid} | ({"previous_response_id": previous} if previous else {}))
        at_us = START_US + at_s * SECOND
        told = summary(Choice(0, content=answer))
        told.response_id = f"resp_{uid}"
        asked = begin(uid, body, endpoint="responses", path="/v1/responses", at_us=at_us, key_name=key)
        return asked, end(uid, at_us=at_us + SECOND, summary=told)

    apply(conn, ask("a", 0, "k", None, "one"), ask("b", 5, "k", "resp_a", "two"), ask("c", 9, "other", "resp_a", "three"))
    assert groups(conn) == [["a", "b"], ["c"]]
    (depth,) = conn.execute("SELECT depth FROM messages m JOIN exchanges e ON e.output_tip = m.hash WHERE uid = 'b'").fetchone()
    assert depth == 3


def test_the_same_small_talk_twice(conn: sqlite3.Connection) -> None:
    """The turn before is the latest one of the same key that began earlier."""
    apply(
        conn,
        turn("a1", ["hi"], "hello", 0, key="k"),
        turn("b1", ["hi"], "hello", 10, key="k"),
        turn("c1", ["hi"], "hello", 15, key="other"),
        turn("b2", ["hi", said("hello"), "how?"], "well", 20, key="k"),
    )
    assert groups(conn) == [["a1"], ["b1", "b2"], ["c1"]]


def test_a_reply_that_comes_later_moves_the_end(conn: sqlite3.Connection) -> None:
    first, last = turn("a", ["hello"], "hi", 0)
    ingester = Ingester(conn)
    ingester.apply([Item(Segment("w0", "b", 1), 0, encode(first))])
    asked = conn.execute("SELECT tip, model FROM conversations").fetchone()
    ingester.apply([Item(Segment("w0", "b", 1), 0, encode(last))])
    answered = conn.execute("SELECT tip, model FROM conversations").fetchone()
    assert asked == (conn.execute("SELECT input_tip FROM exchanges").fetchone()[0], "m")
    assert answered == (conn.execute("SELECT output_tip FROM exchanges").fetchone()[0], "served")


def talks(dice: random.Random) -> list[Pair]:
    """Conversations of some keys that overlap: small talk, branches, clients that trim, prompts without a past."""
    out: list[Pair] = []
    clock = 0.0
    for talk in range(14):
        key = dice.choice(["k1", "k2"])
        history: list[Any] = [{"role": "system", "content": "s"}] if dice.random() < 0.5 else []
        trims = dice.random() < 0.3
        kept: list[list[Any]] = []
        for step in range(dice.randint(1, 5)):
            if kept and dice.random() < 0.2:
                history = list(dice.choice(kept))  # goes back and asks something else
            clock += dice.uniform(1.5, 4)
            history.append(f"question {talk if dice.random() < 0.6 else 0}.{step}")
            reply = f" answer {talk if dice.random() < 0.6 else 0}.{step} \n"
            out.append(turn(f"u{len(out):03d}", list(history), reply, clock, key=key))
            history.append(said(reply.strip() if trims else reply))
            kept.append(list(history))
    return out


@pytest.mark.parametrize("seed", range(12))
def test_the_order_of_storing_does_not_matter(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    pairs = talks(dice)
    results = []
    for n in range(4):
        with closing(open_writer(tmp_path / f"{n}.db")) as conn:
            conn.execute("BEGIN")
            mixed = list(pairs)
            if n:
                dice.shuffle(mixed)
            if n == 3:  # the way it is after a restart: nothing remembered
                for pair in mixed:
                    apply(conn, pair)
            else:
                apply(conn, *mixed)
            groups(conn)
            results.append((checksums(conn), rows(conn, "conversations"), groups(conn)))
    assert len(results[0][2]) < len(pairs)
    for found in results[1:]:
        assert found[2] == results[0][2]
        assert found[1] == results[0][1]
        assert found[0]["conversations"] == results[0][0]["conversations"]
        assert found[0]["usage_daily"] == results[0][0]["usage_daily"]


def test_huge_conversations_are_left_alone(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    late = turn("a", ["hello"], "hi", 0)
    apply(conn, *(turn(f"b{n}", ["hello", said("hi"), f"{n}"], "ok", 5 + n) for n in range(4)))
    before = groups(conn)
    apply(conn, late)
    assert groups(conn) == sorted([*before, ["a"]])


def test_titles() -> None:
    assert module.title(None) is None
    assert module.title(" \n ") is None
    assert module.title("a\n b" + " x" * 500) == ("a b" + " x" * 500)[: module.TITLE_CHARS]


def test_a_conversation_without_turns_goes(conn: sqlite3.Connection) -> None:
    apply(conn, turn("a", ["hello"], "hi", 0))
    conn.execute("DELETE FROM exchanges")
    module.summarise(conn, 1)
    assert conn.execute("SELECT count(*) FROM conversations").fetchone() == (0,)
