"""What the transcript template is given: a `Transcript` with its links, texts and HTML made ready."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from llmtap_launcher.datasette import bubbles, cells, facts, sparkline, timeline
from llmtap_launcher.datasette.command import GATEWAY_VARIABLE, PAGES_VARIABLE, WEB_VARIABLE
from llmtap_launcher.datasette.conversation import Transcript, Turn
from llmtap_launcher.datasette.formats import duration, number, when
from llmtap_launcher.store import request_of

_TITLE_CHARS = 70


def _title(it: Transcript) -> str:
    """The last thing a user said, shortened; else the endpoint."""
    for message in reversed(it.messages):
        if message.role == "user" and message.text and message.text.strip():
            words = " ".join(message.text.split())
            return words if len(words) <= _TITLE_CHARS else words[: _TITLE_CHARS - 1].rstrip() + "…"
    return str(it.exchange.get("endpoint") or "Exchange")


def _notice(row: dict[str, Any], replied: bool) -> tuple[str, str]:
    """One line after the last bubble when the exchange did not simply end well: (text, css class)."""
    outcome = row.get("outcome")
    error = row.get("error_message") or row.get("error_type")
    partial = " The reply is what had arrived by then." if replied else ""
    if outcome == "open":
        return "Still running: this page shows what is stored so far.", "mild"
    if outcome == "client_abort":
        return "The client went away before the reply was complete." + partial, "mild"
    if outcome == "lost":
        return "The gateway was killed while this request was running; what became of it is not known.", "bad"
    if outcome in ("upstream_error", "timeout", "rejected"):
        said = f": {error}" if error else "."
        return f"{str(outcome).replace('_', ' ').capitalize()}{said}{partial}", "bad"
    return "", ""


def _strip(it: Transcript, path: Callable[[str], str]) -> dict[str, Any] | None:
    """The turns of the conversation to step through; None where there is only one."""
    if it.turns_in_all < 2:
        return None
    here = next((n for n, turn in enumerate(it.turns) if turn.uid == it.exchange["uid"]), 0)
    turns = [{**_turn(turn, path), "number": it.first_turn + n, "here": n == here} for n, turn in enumerate(it.turns)]
    return {"turns": turns, "number": it.first_turn + here, "all": it.turns_in_all}


def _stalls(it: Transcript) -> str:
    found = timeline.stalls(it.deltas)
    if not found:
        return ""
    longest = max(found, key=lambda stall: stall.took_ms)
    count = "one stall" if len(found) == 1 else f"{len(found)} stalls"
    return f"{count}, the longest of {duration(longest.took_ms)} after {duration(longest.start_ms)}"


def _replay(row: dict[str, Any], path: Callable[[str], str]) -> str:
    """A command line that sends the request again through the gateway, from any shell; with the key of its environment."""
    gateway = os.environ.get(GATEWAY_VARIABLE, "http://127.0.0.1:8000")
    pages = os.environ.get(PAGES_VARIABLE, "http://127.0.0.1:8001")
    body = f"{pages}{path('/-/request/' + quote(str(row['uid']), safe=''))}.json"
    target = f"{gateway}{request_of.replay_path(row)}"
    key = '${OPENAI_API_KEY:+-H "authorization: Bearer $OPENAI_API_KEY"}'
    send = f"curl -sN {shlex.quote(target)} -H 'content-type: application/json' {key} --data-binary @-"
    return f"curl -s {shlex.quote(body)} | {send}"


def web_url(row: Mapping[str, Any]) -> str:
    """The request in mitmweb, when that runs; empty otherwise. The reply's header has the client's own id, if it gave one."""
    base = os.environ.get(WEB_VARIABLE, "")
    # a regular expression between quotes: what could mean something there becomes any one character
    ident = re.sub(r"[^0-9A-Za-z_-]", ".", str(row.get("request_id") or row["uid"]))
    search = f'~hs "x-request-id: {ident}([^!-~]|$)"'
    return f"{base.rstrip('/')}/#/flows?s={quote(search, safe='')}" if base else ""


def _turn(turn: Turn, path: Callable[[str], str]) -> dict[str, str]:
    words = [when(turn.started_at), turn.model or "", (turn.outcome or "").replace("_", " ")]
    return {"href": path(cells.transcript_path(turn.uid)), "title": " · ".join(w for w in words if w)}


def context(it: Transcript, database_url: str, path: Callable[[str], str]) -> dict[str, Any]:
    """The template's `transcript`. `database_url` is the database's page, `path` puts base_url before a path."""
    row = it.exchange
    reply = any(m.reply for m in it.messages)
    notice, kind = _notice(row, reply)
    pace = sparkline.pace(it.deltas)
    totals = [
        row.get("model_response") or row.get("model_requested"),
        f"{number(row['prompt_tokens'])} → {number(row['completion_tokens'])} tokens"
        if row.get("prompt_tokens") is not None and row.get("completion_tokens") is not None
        else None,
        duration(row["duration_ms"]) if row.get("duration_ms") is not None else None,
        f"{when(row['started_at'])} UTC" if row.get("started_at") else None,
    ]
    uid = quote(str(row["uid"]), safe="")
    return {
        "title": _title(it),
        "badge": cells.badge(str(row["outcome"])) if row.get("outcome") else Markup(""),
        "subtitle": " · ".join(str(t) for t in totals if t),
        "bubbles": [bubbles.bubble(m, f"{database_url}/bodies/{m.body_id}") for m in it.messages],
        "earlier": it.earlier,
        "all_url": path(cells.transcript_path(str(row["uid"]))) + "?all=1",
        "json_url": f"{database_url}/transcript.json?id={uid}&_shape=array",
        "row_url": f"{database_url}/exchanges/{row['id']}",
        "facts": facts.facts(row),
        "extras": facts.extras(it),
        "svg": sparkline.svg(pace) if pace else "",
        "timeline": timeline.svg(it.deltas, row.get("duration_ms")),
        "stalls": _stalls(it),
        "strip": _strip(it, path),
        "replay": _replay(row, path) if it.messages else "",
        "web_url": web_url(row),
        "pace": (
            f"{number(len(it.deltas))} events; between two of them {duration(pace.p50)} (median), "
            f"{duration(pace.p95)} (95th percentile), {duration(pace.longest)} at most"
            if pace
            else ""
        ),
        "notice": notice,
        "notice_kind": kind,
        "previous": [_turn(t, path) for t in it.previous],
        "following": [_turn(t, path) for t in it.following],
        "same_prompt": [_turn(t, path) for t in it.same_prompt],
    }
