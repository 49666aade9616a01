"""Looking into live traffic with mitmweb or the mitmproxy console: what their list of flows shows, and how long it gets.

    comment     one line of what came of a request: outcome, model@backend, tokens, time to first token, duration, error
    mark        failures are marked
    length      finished flows beyond `llmtap_view_flows` leave the list, oldest first (mitmproxy itself keeps all)
    own         health and metrics polls leave it as soon as they are answered
    streams     are drawn anew every second while they run

Only made where there is such a list.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakSet

from mitmproxy import flow as mflow
from mitmproxy import http

from llmtap.exchange import Exchange

MARK = ":red_circle:"
_SOON_S, _REDRAW_S = 0.1, 1.0
#: a comment of ours, which a later run of the same flow may replace; a person's own is left alone
_OURS = re.compile(r"(?:running|ok|cached|client_abort|upstream_error|timeout|rejected|lost) \N{MIDDLE DOT} ")


class View(Protocol):
    """mitmproxy's `addons.view.View`, as far as it is used."""

    def remove(self, flows: Sequence[mflow.Flow]) -> None: ...
    def update(self, flows: Sequence[mflow.Flow]) -> None: ...


class Inspect:
    """Observer. `keep`: how many finished flows stay in the list; 0 means all."""

    name = "inspect"

    def __init__(self, view: View, keep: int) -> None:
        self._view = view
        self._keep = keep
        self._finished: dict[str, http.HTTPFlow] = {}  # by id, oldest first
        self._leaving: list[http.HTTPFlow] = []  # to be removed once they are over
        self._streaming: WeakSet[http.HTTPFlow] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def own_answer(self, flow: http.HTTPFlow) -> None:
        """A request of no interest: it leaves the list when it is over."""
        self._leaving.append(flow)
        self._later(_SOON_S)

    # steps

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._say(flow, f"running \N{MIDDLE DOT} {_who(ex)}")

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if flow.response is not None and flow.response.stream:
            self._streaming.add(flow)
            self._later(_REDRAW_S)

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self._streaming.discard(flow)
        self._say(flow, summary(ex))
        if ex.outcome not in ("ok", "cached"):
            flow.marked = flow.marked or MARK
        elif flow.marked == MARK:
            flow.marked = ""
        self._finished.pop(flow.id, None)
        self._finished[flow.id] = flow
        if self._keep and len(self._finished) > self._keep:
            self._later(_SOON_S)

    # the list

    def _say(self, flow: http.HTTPFlow, text: str) -> None:
        if not flow.comment or _OURS.match(flow.comment):
            flow.comment = text

    def _later(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        if self._keep:
            while len(self._finished) > self._keep:
                self._leaving.append(self._finished.pop(next(iter(self._finished))))
        # removing a live flow would kill it
        over = [flow for flow in self._leaving if not flow.live]
        self._leaving = [flow for flow in self._leaving if flow.live]
        for flow in over:  # one by one: mitmproxy alerts the user of several at once
            self._view.remove([flow])
        if self._streaming:
            self._view.update(list(self._streaming))
        if self._streaming or self._leaving:
            self._later(_REDRAW_S)


def summary(ex: Exchange) -> str:
    """One line of what came of it."""
    usage = ex.summary.usage if ex.summary else None
    parts = [ex.outcome, _who(ex)]
    if usage is not None and usage.completion_tokens is not None:
        parts.append(f"{usage.prompt_tokens or 0}+{usage.completion_tokens} tok")
    if ex.ttft_s is not None:
        parts.append(f"ttft {_time(ex.ttft_s)}")
    if ex.duration_s is not None:
        parts.append(_time(ex.duration_s))
    error = ex.error_type or (ex.summary.error_type if ex.summary else None)
    if error and error != ex.outcome:
        parts.append(error)
    return " \N{MIDDLE DOT} ".join(parts)


def _who(ex: Exchange) -> str:
    who = (ex.model or ex.endpoint.name) + (f"@{ex.backend}" if ex.backend else "")
    # a model name is the client's text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in who[:200])


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
