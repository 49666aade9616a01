"""The gateway lane: a proxy mode inside mitmproxy that does its own I/O and fires mitmproxy's hooks.

    inbound   client bytes → requests          client    one client connection
    relay     one exchange, top to bottom      upstream  one backend connection, pool: all of them
    head, body  framing on the wire            mode      what mitmproxy sees of it, mitm: what it sees of mitmproxy

HTTP/1.1 and 1.0 with clients, HTTP/1.1 with backends, websockets through both; TLS and UNIX sockets on request. Not here:
HTTP/2 (use a stock mode). Importing this package registers the mode `gateway`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mitmproxy import ctx, http
from mitmproxy.master import Master

from llmtap.lane.lane import Answer, Failing, Lane, LastWords, Plans, Uploading, existing_lane, lane_of
from llmtap.lane.limits import LaneLimits
from llmtap.lane.mitm import replay_with, uvloop_loop_factory
from llmtap.lane.mode import default_mode
from llmtap.lane.replay import Replay
from llmtap.lane.upload import Upload


def install(
    *,
    plans: Plans,
    answer: Answer,
    failing: Failing | None = None,
    limits: LaneLimits | None = None,
    last_words: LastWords | None = None,
    uploading: Uploading | None = None,
    before_replay: Callable[[], Awaitable[None]] | None = None,
    reuse_port: bool = False,
    master: Master | None = None,
) -> Lane:
    """Set up (or set anew) the lane of this mitmproxy; call from `load` or later, inside the event loop.

    `plans`: read after the `request` hook. `answer`: an error → the whole response. `failing`: told of an error
    before the `error` hook fires, which knows its message only. `last_words`: the end of a stream that broke, given its last
    bytes; the default knows the three dialects. `uploading`: decides by its plan where a request goes whose body is sent as it
    comes (`flow.request.stream`), before that body is here. `before_replay`: awaited before a replay goes out. Other `limits`
    later: `lane.set_limits`.
    """
    lane = lane_of(master or ctx.master)
    replay_with(_replay)
    lane.plans = plans
    lane.answer = answer
    if failing is not None:
        lane.failing = failing
    if limits is not None:
        lane.set_limits(limits)
    if last_words is not None:
        lane.last_words = last_words
    if uploading is not None:
        lane.uploading = uploading
    lane.before_replay = before_replay
    lane.reuse_port = reuse_port
    return lane


def _replay(flow: http.HTTPFlow) -> Replay | None:
    lane = existing_lane(ctx.master)
    return Replay(lane, flow) if lane is not None else None


__all__ = [
    "Answer",
    "Failing",
    "Lane",
    "LaneLimits",
    "LastWords",
    "Plans",
    "Upload",
    "default_mode",
    "install",
    "uvloop_loop_factory",
]
