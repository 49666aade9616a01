"""Which requests are sent again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap_launcher.export.options import Wanted
from llmtap_launcher.replay.chosen import ENDPOINTS, Asked, chosen, requests
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures

U1 = {"role": "user", "content": "one"}
ANY = Wanted(finish_reasons=(), endpoints=ENDPOINTS)


@pytest.fixture
def captures(tmp_path: Path) -> Iterator[Captures]:
    with Captures(tmp_path) as captures:
        yield captures


def of(captures: Captures, wanted: Wanted = ANY, run: str = "r", limit: int | None = None) -> list[str]:
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        return chosen(conn, wanted, run, limit)


def replied(captures: Captures, uid: str, run: str, **fields: Any) -> str:
    asked = {"tags": ["replay", f"replay:{run}"], "metadata": {"replay": run, "replay_of": uid}}
    return captures.exchange([U1], "again", asked=asked, **fields)


def test_the_newest_oldest_first(captures: Captures) -> None:
    uids = [captures.exchange([U1], "yes") for _ in range(4)]
    captures.exchange([U1], outcome="upstream_error", status=500)
    assert of(captures) == uids
    assert of(captures, limit=2) == uids[2:]
    assert len(of(captures, Wanted(outcomes=(), finish_reasons=(), endpoints=ENDPOINTS))) == 5


def test_a_run_goes_on_where_it_stopped(captures: Captures) -> None:
    uids = [captures.exchange([U1], "yes") for _ in range(3)]
    replied(captures, uids[0], "r")
    replied(captures, uids[1], "r", outcome="upstream_error", status=500)
    captures.exchange([U1], "tagged by somebody", asked={"tags": ["replay:r"]})  # no replay_of: leaves nothing out
    assert of(captures)[:2] == uids[1:]
    assert of(captures, run="other")[:3] == uids


def test_replays_are_not_sent_again_unless_they_are_named(captures: Captures) -> None:
    uid = captures.exchange([U1], "yes")
    again = replied(captures, uid, "r")
    assert of(captures, run="s") == [uid]
    assert of(captures, Wanted(Selection(tags=["replay:r"]), finish_reasons=(), endpoints=ENDPOINTS), run="s") == [again]


def test_what_is_sent(captures: Captures) -> None:
    chat = captures.exchange([U1], "yes", asked={"temperature": 0.5, "seed": 1})
    asked = {"endpoint": "completions", "path": "/v1/completions", "prompt": "Once"}
    text = captures.exchange([], "more", asked=asked)
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        found = list(requests(conn, [chat, text, "gone"], {"model": "b", "seed": None, "top_p": 0.9}))
    assert found[0] == Asked(chat, "chat", {"model": "b", "stream": True, "temperature": 0.5, "messages": [U1], "top_p": 0.9})
    assert found[1] is not None and found[1].endpoint == "completions" and found[1].body["prompt"] == "Once"
    assert found[2] is None
