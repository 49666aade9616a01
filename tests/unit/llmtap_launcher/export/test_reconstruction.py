"""What is exported is what the client sent and received: sessions made up by hypothesis, judged by the client's own memory.

`LLMTAP_SESSIONS` sets how many (200; the full test is 1000).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtap.core.record import Begin, Choice, End, Summary, ToolCall, Usage, encode
from llmtap.spool.segment import Segment
from llmtap_launcher.export.formats import FORMATS
from llmtap_launcher.export.options import Wanted
from llmtap_launcher.export.run import Job, export
from llmtap_launcher.store.database import connect_ro, open_writer
from llmtap_launcher.store.ingest import Ingester, Item
from support.size import size

Message = dict[str, Any]
PNG = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 40

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)
contents = st.one_of(
    words,
    words,
    st.builds(
        lambda text, detail: [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": PNG, **({"detail": "low"} if detail else {})}},
        ],
        words,
        st.booleans(),
    ),
)
arguments = st.dictionaries(st.sampled_from("abc"), st.one_of(st.integers(-9, 9), words), max_size=2)
#: what happens next: a question and its reply, tools called before it, or an edit of something said before
steps = st.one_of(
    st.tuples(st.just("ask"), contents, words, st.one_of(st.none(), words)),
    st.tuples(st.just("tools"), words, st.lists(arguments, min_size=1, max_size=2), words),
    st.tuples(st.just("edit"), st.integers(0, 20), words, words),
    st.tuples(st.just("again"), words, words, st.none()),
)


class Client:
    """Sends its history with every turn and remembers every exchange."""

    def __init__(self, conn: sqlite3.Connection, number: int, system: str | None) -> None:
        self._ingester = Ingester(conn)
        self._conn = conn
        self._number = number
        self._turn = 0
        self.history: list[Message] = [{"role": "system", "content": system}] if system else []
        self.exchanges: list[list[Message]] = []
        self.tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    def send(self, choice: Choice, reply: Message) -> None:
        uid = f"s{self._number}-{self._turn}"
        at = 1_795_000_000_000_000 + self._number * 1_000_000_000 + self._turn * 1_000_000
        self._turn += 1
        body = orjson.dumps({"model": "m", "messages": self.history, "tools": self.tools})
        begin = Begin(
            uid, at, "w", "POST", "/v1/chat/completions", "chat", session_hint=f"s{self._number}", body=body, body_is_json=True
        )
        summary = Summary("id", "m", [choice], Usage(5, 5, source="upstream"), complete=True)
        end = End(uid, at + 500_000, "ok", status=200, summary=summary)
        self._conn.execute("BEGIN")
        segment = Segment("w", "b", 1)
        assert not self._ingester.apply([Item(segment, 0, encode(begin)), Item(segment, 0, encode(end))]).poison
        self._conn.execute("COMMIT")
        self.history = [*self.history, reply]
        self.exchanges.append(self.history)

    def expected(self) -> list[str]:
        """The exchanges that no other one goes on from, each once."""
        return sorted(
            {
                orjson.dumps([_sent(message) for message in one]).decode()
                for one in self.exchanges
                if not any(len(other) > len(one) and other[: len(one)] == one for other in self.exchanges)
            }
        )


def play(client: Client, todo: list[Any]) -> None:
    for kind, first, second, third in todo:
        if kind == "ask":
            client.history = [*client.history, {"role": "user", "content": first}]
            client.send(
                Choice(0, content=second, reasoning=third, finish_reason="stop"), {"role": "assistant", "content": second}
            )
        elif kind == "tools":
            client.history = [*client.history, {"role": "user", "content": first}]
            calls = [ToolCall(i, f"c{i}", name="f", arguments=orjson.dumps(given).decode()) for i, given in enumerate(second)]
            function = [{"name": call.name, "arguments": call.arguments} for call in calls]
            sent = [{"id": call.id, "type": "function", "function": f} for call, f in zip(calls, function, strict=True)]
            client.send(
                Choice(0, tool_calls=calls, finish_reason="tool_calls"),
                {"role": "assistant", "content": None, "tool_calls": sent},
            )
            client.history += [{"role": "tool", "content": third, "tool_call_id": call.id} for call in calls]
            client.send(Choice(0, content=third, finish_reason="stop"), {"role": "assistant", "content": third})
        elif kind == "edit":
            users = [at for at, message in enumerate(client.history) if message["role"] == "user"]
            if not users:
                continue
            at = users[first % len(users)]
            client.history = [*client.history[:at], {"role": "user", "content": second}]
            client.send(Choice(0, content=third, finish_reason="stop"), {"role": "assistant", "content": third})
        elif client.history and client.history[-1]["role"] == "assistant":
            client.history = client.history[:-1]
            client.send(Choice(0, content=first, finish_reason="stop"), {"role": "assistant", "content": first})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sqlite3.Connection, Path, Iterator[int]]]:
    path = tmp_path_factory.mktemp("sessions") / "capture.db"
    with closing(open_writer(path)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        yield conn, path, count()


@settings(
    max_examples=size("LLMTAP_SESSIONS", 200, 1000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(system=st.one_of(st.none(), words), todo=st.lists(steps, min_size=1, max_size=6))
def test_exported_is_what_was_sent_and_received(
    place: tuple[sqlite3.Connection, Path, Iterator[int]], tmp_path: Path, system: str | None, todo: list[Any]
) -> None:
    conn, path, numbers = place
    number = next(numbers)
    # a beginning of its own: what another session said alike would be the same conversation
    client = Client(conn, number, f"{number} {system}" if system else None)
    if not system:
        client.history = [{"role": "user", "content": f"session {number}"}]
        client.send(Choice(0, content="yes", finish_reason="stop"), {"role": "assistant", "content": "yes"})
    play(client, todo)
    out = tmp_path / "rows.jsonl"
    out.unlink(missing_ok=True)  # of the example before: an export without a row leaves it
    sql = f"SELECT id FROM exchanges WHERE session_hint = 's{number}'"
    with closing(connect_ro(path)) as reader:
        export(reader, Job(FORMATS["openai-sft"], out, Wanted(sql=sql)))
    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()] if out.exists() else []
    assert all(row["tools"] == client.tools for row in rows)
    assert all(m["weight"] == 1 for row in rows for m in row["messages"] if m["role"] == "assistant")
    got = sorted(orjson.dumps([_sent(message) for message in row["messages"]]).decode() for row in rows)
    assert got == client.expected()


def _sent(message: Message) -> Message:
    """Without the weight, its keys in one order. The arguments of a call are what they say: the store keeps one spelling of
    messages that are equal (`{"a":1,"b":2}`, `{"b":2,"a":1}`), as clients write them anew."""
    order = ("role", "content", "tool_calls", "tool_call_id")
    out = {key: message[key] for key in order if key in message}
    if "tool_calls" in out:
        out["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": sorted(orjson.loads(call["function"]["arguments"]).items())}}
            for call in out["tool_calls"]
        ]
    return out
