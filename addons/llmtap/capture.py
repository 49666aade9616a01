"""Capture: two records an exchange into the spool, and the writer process that brings them into SQLite.

`begin` is written when a request is forwarded: in the same turn of the event loop, while the backend has it already, with
`capture.required` before that. That of a long request is written by a thread, and a reply that comes later than `GRACE_S` waits
for it. `end` is written when its exchange is finalised, before the client has the last byte: whoever saw a complete reply finds
it in the database, whatever is killed (its request's text too, but for a long one that was answered within `GRACE_S`). Disk
trouble never reaches a request (unless `capture.required`), it is counted. Neither headers nor queries are captured, so no key
can be.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitmproxy import http
from ulid import ULID

from llmtap.core.config import Config
from llmtap.core.errors import ApiError
from llmtap.core.record import Begin, End, json_body
from llmtap.exchange import Exchange
from llmtap.policy.capturing import CaptureRules, Mode
from llmtap.spool.long import LONG_BYTES, Pending
from llmtap.spool.sink import SpoolSink, without_bodies

log = logging.getLogger("llmtap.capture")
SYNC_S = 0.5
#: for how long a reply waits for the record of its (long) request
PATIENCE_S = 1.0
#: writing it takes some tenths of a millisecond: a reply that comes sooner than this goes on at once
GRACE_S = 0.005
#: of a request, each under its name in the record
_MAY_BE_KNOWN = ("request_id", "user_agent", "key_name", "session_hint", "tags", "metadata", "model")


class CaptureUnavailable(ApiError):
    """`capture.required` is set and the capture log cannot be written."""

    status, type, default_code = 503, "service_unavailable_error", "capture_unavailable"
    retry_after_s = 5


class Capture:
    """Observer (and, with `capture.required`, policy): the spool records of every exchange."""

    name = "capture"

    def __init__(self, config: Config, count_dropped: Callable[[str, int], None]) -> None:
        self._timings = config.capture.timings
        self._required = config.capture.required
        self._count_dropped = count_dropped
        self._counted: dict[str, int] = {}
        self.worker = f"{socket.gethostname().partition('.')[0]}.{os.getpid()}"
        self.sink = SpoolSink(
            config.spool_dir,
            self.worker,
            str(ULID()),
            segment_bytes=int(config.capture.segment_mb * 1_000_000),
            max_spool_bytes=int(config.capture.max_spool_gb * 1_000_000_000) or None,
            max_body_bytes=config.capture.max_body_kb * 1024 or None,
        )
        self._rules = CaptureRules(config.capture)
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forwarded: list[Exchange] = []  # in this turn of the loop: their records are still to be begun

    # lifecycle

    def start(self) -> None:
        """Flush to the disk twice a second, off the event loop. Call on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._sync_forever(), name="llmtap capture sync")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.sink.close()

    async def _sync_forever(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            await asyncio.to_thread(self.sink.sync)
            self.sink.again()
            self.report()

    def report(self) -> None:
        """Bring what the sink dropped into the metrics."""
        for reason, n in self.sink.dropped.items():
            if more := n - self._counted.get(reason, 0):
                self._counted[reason] = n
                self._count_dropped(reason, more)

    # steps

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        if not self._required:
            if self._loop is not None:
                if not self._forwarded:
                    self._loop.call_soon(self._begin_forwarded)
                self._forwarded.append(ex)
            else:
                self._begin(ex)
            return
        if not self.sink.healthy:
            raise CaptureUnavailable("captures cannot be written, and capture.required is set")
        self._begin(ex)
        if not self.sink.healthy:
            raise CaptureUnavailable("captures cannot be written, and capture.required is set")

    def on_responseheaders(self, flow: http.HTTPFlow, ex: Exchange) -> Awaitable[None] | None:
        pending = ex.capture_pending
        if pending is None:
            return None
        ex.capture_pending = None
        if not pending.done and time.monotonic() - pending.since > GRACE_S:
            return self._until(pending)
        self.sink.again()
        return None

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        mode = ex.capture
        if mode is None:
            mode = self._begin(ex)
        if mode == "off":
            return
        started, finished, summary = ex.started, ex.finished, ex.summary
        fields: dict[str, Any] = {
            "uid": ex.uid,
            "at_us": ex.started_us if finished is None else ex.started_us + round((finished - started) * 1e6),
            "outcome": ex.outcome,
            "attempts": ex.attempts,
            "cache": ex.cache,
            "queue_ms": round(ex.queue_s * 1000, 3),
            "chunks": ex.chunks,
            "response_bytes": ex.reply_bytes,
        }
        if ex.status is not None:
            fields["status"] = ex.status
        if error_type := ex.error_type or (summary.error_type if summary is not None else None):
            fields["error_type"] = error_type
        if error_message := ex.error_message or (summary.error_message if summary is not None else None):
            fields["error_message"] = error_message
        if ex.backend is not None:
            fields["backend"] = ex.backend
        if ex.content_type:
            fields["content_type"] = ex.content_type
        if summary is not None:
            fields["summary"] = summary
        if ex.first_content is not None:
            fields["ttft_ms"] = round((ex.first_content - started) * 1000, 3)
        if finished is not None:
            fields["duration_ms"] = round((finished - started) * 1000, 3)
        if ex.overhead_s is not None:
            fields["overhead_ms"] = round(ex.overhead_s * 1000, 3)
        if ex.deltas and self._timings:
            fields["deltas"] = ex.deltas
        if ex.upload is not None:
            fields["request_bytes"] = ex.upload.received
        elif ex.socket is not None:
            fields["request_bytes"], fields["messages"] = ex.socket.received, ex.socket.messages or None
            fields["messages_dropped"] = ex.socket.dropped or None
        if mode != "full" or ex.reply_body is not None or ex.socket is not None or not self.sink.write_fields("end", fields):
            end = End(**fields, body=ex.reply_body)
            self.sink.write_end(end if mode == "full" else _numbers(end))

    def _begin_forwarded(self) -> None:
        forwarded, self._forwarded = self._forwarded, []
        for ex in forwarded:
            if ex.capture is not None:
                continue  # it has ended already
            try:
                self._begin(ex, soon=True)
            except Exception:
                continue  # tried again at the end, where what a step raises is counted

    async def _until(self, pending: Pending) -> None:
        """The reply waits for the request's record, but not for a disk that stands still."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(PATIENCE_S, _release, future)
        pending.then(lambda: loop.call_soon_threadsafe(_release, future))
        try:
            await future
        finally:
            timer.cancel()
        self.sink.again()

    def _begin(self, ex: Exchange, soon: bool = False) -> Mode:
        mode: Mode = "full"
        if ex.capture_wish is not None or not self._rules.trivial:
            mode = self._rules.mode(ex.capture_wish, ex.key_name, ex.model, ex.session_hint or ex.uid)
        if mode == "off":
            ex.capture = mode
            return mode
        body = ex.body or None
        size = 0 if body is None else len(body)
        fields: dict[str, Any] = {
            "uid": ex.uid,
            "at_us": ex.started_us,
            "worker": self.worker,
            "method": ex.method,
            "path": ex.path,
            "endpoint": ex.endpoint.name,
            "client_ip": ex.client_ip,
            "stream": ex.stream,
            "request_bytes": size,
        }
        for name in _MAY_BE_KNOWN:
            if (value := getattr(ex, name)) is not None:
                fields[name] = value
        exact = ex.parsed is not None and ex.parsed.exact
        plain = mode == "full" and exact and ex.filtered is None and body is not None and size < LONG_BYTES
        if plain and self.sink.write_fields("begin", {**fields, "body": json_body(body or b"")}, size):
            ex.capture = mode
            return mode
        dropped = None if ex.upload is None else "streamed"
        record = Begin(
            **fields,
            body=body if mode == "full" else None,
            body_is_json=ex.received_exact if ex.filtered is not None else exact,
            forwarded=json_body(ex.filtered) if ex.filtered is not None and mode == "full" else None,
            body_dropped=dropped if mode == "full" else "opted_out",
        )
        if soon:
            ex.capture_pending = self.sink.write_begin_soon(record)
        else:
            self.sink.write_begin(record)
        ex.capture = mode
        return mode


class WriterProcess:
    """`llmtap ingest --follow` as a child of a gateway that runs without the launcher.

    It notices our end by its standard input and makes a last pass, so nothing captured waits for the next start.
    `silent`: the terminal is somebody's screen. `file`: the configuration file, where it finds prices and how long things are
    kept; without one nothing has a price and everything is kept.
    """

    def __init__(self, config: Config, silent: bool = False, file: Path | None = None) -> None:
        self._out = subprocess.DEVNULL if silent else None
        self._argv = [
            sys.executable,
            "-m",
            "llmtap_launcher",
            "ingest",
            "--follow",
            "--parent-pipe",
            "--dir",
            str(config.capture.dir),
        ]
        if file is not None:
            self._argv += ["--config", str(file)]
        if config.store.path is not None:
            self._argv += ["--db", str(config.store.path)]
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; a failure is logged, never raised (the spool keeps everything)."""
        roots = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "launcher")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
        try:
            # a session of its own: Ctrl-C in the terminal must not take it before its last pass
            self._child = subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=self._out, stderr=self._out, env=env, start_new_session=True
            )
        except OSError as error:
            log.error("llmtap: the writer could not be started: %s; captures stay in the spool", error)

    def stop(self) -> None:
        """Close its standard input: it finishes on its own."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
            self._child.stdin = None
            # not waited for: the gateway must not hang on a slow disk; init takes care of it
            self._child = None


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _numbers(end: End) -> End:
    """The record without a word of the reply (an error's text may repeat some of the request)."""
    bare = without_bodies(end, "opted_out")[0]
    assert isinstance(bare, End)
    bare.body_dropped, bare.error_message = "opted_out", None
    if bare.summary is not None:
        bare.summary = replace(bare.summary, error_message=None)
    return bare
