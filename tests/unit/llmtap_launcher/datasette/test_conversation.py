from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.record import Choice
from llmtap_launcher.datasette import conversation
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures, weather


@pytest.fixture
def captures(tmp_path: Path) -> Iterator[Captures]:
    with Captures(tmp_path) as captures:
        yield captures


@pytest.fixture
def conn(captures: Captures) -> Iterator[sqlite3.Connection]:
    with closing(connect_ro(captures.db)) as conn:
        yield conn


def load(conn: sqlite3.Connection, ident: str, everything: bool = False) -> conversation.Transcript:
    found = conversation.load(conn, ident, everything)
    assert found is not None
    return found


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_the_whole_history_in_order_with_the_reply_last(captures: Captures, conn: sqlite3.Connection) -> None:
    _, second, _ = weather(captures)
    it = load(conn, second)
    assert [(m.role, m.reply) for m in it.messages] == [
        ("system", False),
        ("user", False),
        ("assistant", False),
        ("tool", False),
        ("tool", False),
        ("assistant", True),
    ]
    assert it.messages[1].text == "What is the weather in Paris and in Tokyo? Should I take an umbrella?"
    assert it.messages[2].extra is not None and len(it.messages[2].extra["tool_calls"]) == 2
    assert it.earlier == 0
    assert len(it.deltas) == 121 and it.deltas[0] == 1842
    assert it.tools is not None and "get_weather" in it.tools


def test_turns_lead_from_one_exchange_to_the_next(captures: Captures, conn: sqlite3.Connection) -> None:
    first, second, third = weather(captures)
    turns = {uid: load(conn, uid) for uid in (first, second, third)}
    assert [[t.uid for t in turns[uid].previous] for uid in (first, second, third)] == [[], [first], [second]]
    assert [[t.uid for t in turns[uid].following] for uid in (first, second, third)] == [[second], [third], []]
    assert all(t.same_prompt == [] for t in turns.values())


def test_two_ways_on_are_both_named_and_none_beyond(captures: Captures, conn: sqlite3.Connection) -> None:
    start = captures.exchange([user("hi")], "hello")
    said = [user("hi"), {"role": "assistant", "content": "hello"}]
    ways = [captures.exchange([*said, user(text)], f"about {text}") for text in ("cats", "dogs")]
    captures.exchange([*said, user("cats"), {"role": "assistant", "content": "about cats"}, user("more")], "more cats")
    captures.store()
    assert [t.uid for t in load(conn, start).following] == ways


def test_the_same_prompt_again_is_a_neighbour_not_a_turn(captures: Captures, conn: sqlite3.Connection) -> None:
    uids = [captures.exchange([user("hi")], text) for text in ("hello", "hey", "hello")]
    captures.store()
    it = load(conn, uids[0])
    assert [t.uid for t in it.same_prompt] == [uids[2], uids[1]]
    assert it.previous == [] and it.following == []


def test_the_previous_turn_is_the_latest_before_this_one(captures: Captures, conn: sqlite3.Connection) -> None:
    early = captures.exchange([user("hi")], "hello")
    said = [user("hi"), {"role": "assistant", "content": "hello"}, user("and?")]
    on = captures.exchange(said, "nothing")
    captures.exchange([user("hi")], "hello")
    captures.store()
    assert [t.uid for t in load(conn, on).previous] == [early]


def test_by_uid_by_the_clients_own_id_and_by_number(captures: Captures, conn: sqlite3.Connection) -> None:
    old = captures.exchange([user("a")], "1", asked={"request_id": "job-7"})
    new = captures.exchange([user("b")], "2", asked={"request_id": "job-7"})
    captures.store()
    assert load(conn, new).exchange["uid"] == new
    assert load(conn, "job-7").exchange["uid"] == new
    assert load(conn, str(load(conn, old).exchange["id"])).exchange["uid"] == old


@pytest.mark.parametrize("ident", ["", "nope", "999", "9" * 30, "-1", "²", "' or 1=1 --", "job\0"])
def test_no_such_exchange_is_none(captures: Captures, conn: sqlite3.Connection, ident: str) -> None:
    captures.exchange([user("a")], "1")
    captures.store()
    assert conversation.load(conn, ident) is None


def test_long_conversations_begin_with_their_last_messages(captures: Captures, conn: sqlite3.Connection) -> None:
    said = [user(f"message {i}") for i in range(conversation.MAX_MESSAGES + 50)]
    uid = captures.exchange(said, "done")
    captures.store()
    it = load(conn, uid)
    assert it.earlier == 50
    assert [m.text for m in (it.messages[0], it.messages[-2])] == ["message 50", f"message {len(said) - 1}"]
    everything = load(conn, uid, everything=True)
    assert everything.earlier == 0 and len(everything.messages) == len(said) + 1


def test_a_huge_message_is_cut_and_its_length_told(captures: Captures, conn: sqlite3.Connection) -> None:
    uid = captures.exchange([user("x" * (conversation.MAX_CHARS + 1000))], "y")
    captures.store()
    asked = load(conn, uid).messages[0]
    assert len(asked.text or "") == conversation.MAX_CHARS and asked.chars == conversation.MAX_CHARS + 1000


def test_every_choice_of_a_reply_is_shown(captures: Captures, conn: sqlite3.Connection) -> None:
    uid = captures.exchange([user("pick")], [Choice(i, content=text, finish_reason="stop") for i, text in enumerate("ab")])
    captures.store()
    replies = [m for m in load(conn, uid).messages if m.reply]
    assert [(m.choice, m.text) for m in replies] == [(0, "a"), (1, "b")]


def test_the_same_words_after_other_thoughts_keep_their_own_thoughts(captures: Captures, conn: sqlite3.Connection) -> None:
    uids = [
        captures.exchange([user("?")], Choice(0, content="42", reasoning=thought, finish_reason="stop"))
        for thought in ("deep", "deeper", None)
    ]
    captures.store()
    shown = [(load(conn, uid).messages[-1].extra or {}).get("reasoning") for uid in uids]
    assert shown == ["deep", "deeper", None]
    assert all("reasoning" not in load(conn, uid).meta for uid in uids)


def test_an_exchange_under_way_and_one_without_messages(captures: Captures, conn: sqlite3.Connection) -> None:
    running = captures.begin([user("long story")])
    bare = captures.exchange([], None, asked={"endpoint": "models", "path": "/v1/models", "body": None}, outcome="ok")
    captures.store()
    it = load(conn, running)
    assert it.exchange["outcome"] == "open" and [m.text for m in it.messages] == ["long story"]
    assert load(conn, bare).messages == [] and load(conn, bare).deltas == []


def test_a_popular_prompt_costs_no_more_than_its_limits(captures: Captures, conn: sqlite3.Connection) -> None:
    start = captures.exchange([user("hi")], "hello")
    said = [user("hi"), {"role": "assistant", "content": "hello"}]
    for i in range(300):
        captures.exchange([*said, user(f"question {i}")], "answer")
    captures.store()
    assert len(load(conn, start).following) == conversation.MAX_TURNS


def test_stored_json_that_is_broken_is_no_obstacle(captures: Captures, conn: sqlite3.Connection) -> None:
    uid = captures.exchange([user("a")], Choice(0, content="b", reasoning="c", finish_reason="stop"))
    captures.store()
    captures.__exit__()
    with closing(sqlite3.connect(captures.db)) as edit, edit:
        edit.execute("update bodies set json = '[1' where json is not null")
        edit.execute("update exchanges set response_meta_json = '3'")
    it = load(conn, uid)
    assert it.messages[-1].text == "b" and it.messages[-1].extra is None and it.meta == {}
