"""What both clients have: the log and the counts of one, and how they use httpx."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from llmtap.core.errors import SpoolError
from llmtap.middleware import SyncVLLMMiddleware, VLLMMiddleware
from llmtap.middleware.base import LIMITS, Logged, is_stream, patience
from llmtap.middleware.call import About, Call
from llmtap.middleware.settings import settings

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def logged(folder: Path | None) -> Logged:
    return Logged(settings("http://h:1/v1", folder, folder is not None, env={}))


def call(of: Logged) -> Call:
    return Call("chat", ASK, About(), of._settings, of._journal, of._statistics)


def test_the_log_is_everybodys_the_counts_are_its_own(tmp_path: Path) -> None:
    one, other = logged(tmp_path), logged(tmp_path)
    call(one).abort()
    call(other).abort()
    call(other).abort()
    assert [len(client.load_logs()) for client in (one, other)] == [3, 3]
    assert [client.get_statistics()["aborted_requests"] for client in (one, other)] == [1, 2]
    assert one.get_statistics()["log_dropped"] == {}


def test_without_a_log() -> None:
    client = logged(None)
    call(client).abort()
    assert client.load_logs() == []
    assert client.get_statistics()["total_requests"] == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file"):
        logged(tmp_path / "file")


def test_both_clients_are_one() -> None:
    assert issubclass(VLLMMiddleware, Logged)
    assert issubclass(SyncVLLMMiddleware, Logged)


@pytest.mark.parametrize(("seconds", "connect"), [(None, 5.0), (600.0, 5.0), (2.0, 2.0)])
def test_patience(seconds: float | None, connect: float) -> None:
    assert patience(seconds).as_dict() == {"connect": connect, "read": seconds, "write": seconds, "pool": seconds}


def test_no_call_waits_for_another_ones_connection() -> None:
    assert LIMITS.max_connections is None


@pytest.mark.parametrize(
    ("content_type", "stream"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream ; charset=utf-8", True),
        ("application/json", False),
        ("text/event-streams", False),
        (None, False),
    ],
)
def test_is_stream(content_type: str | None, stream: bool) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert is_stream(httpx.Response(200, headers=headers)) is stream
