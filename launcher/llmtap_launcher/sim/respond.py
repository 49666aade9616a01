"""From scripts to bytes on the connection: the response of a generating endpoint, streamed or whole, with its faults."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .bodies import Writer
from .connection import Connection, connection_of
from .engine import Engine, Job, Outcome
from .errors import internal_error
from .faults import Fault
from .script import Step
from .simulation import Seen

_BAD_CHUNK = b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":\n\n'


@dataclass(frozen=True, slots=True)
class Work:
    """What a generating request asks of the engine."""

    scripts: Sequence[Sequence[Step]]
    prompt_tokens: Sequence[int]  # for each script
    max_tokens: int
    ttft_s: float
    interval_s: float
    stream: bool


class TokenResponse(Response):
    """The reply of a generating endpoint. Generation stops as soon as the client's connection is gone."""

    def __init__(self, engine: Engine, writer: Writer, work: Work, fault: Fault | None, seen: Seen) -> None:
        # no super().__init__(): the headers depend on how the generation ends
        self.background = None
        self._engine = engine
        self._writer = writer
        self._work = work
        self._fault = fault
        self._seen = seen
        self._stream_type = (b"content-type", writer.media_type)
        self._whole_type = (b"content-type", writer.whole_type)
        total = sum(map(len, work.scripts))
        # a reply shorter than that still gets its fault, before its end
        self._strike_at = min(fault.after_tokens, max(1, total - 1)) if fault else -1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        job = Job(
            scripts=self._work.scripts,
            prompt_tokens=self._work.prompt_tokens,
            max_tokens=self._work.max_tokens,
            ttft_s=self._work.ttft_s,
            interval_s=self._work.interval_s,
            on_step=lambda choice, step: self._on_step(connection, job, choice, step),
            done=asyncio.get_running_loop().create_future(),
            blocked=(lambda: connection.blocked) if self._work.stream else (lambda: False),
        )

        def abort() -> None:
            self._engine.abort(job)

        connection.when_lost(abort)
        try:
            if self._work.stream:
                await send({"type": "http.response.start", "status": 200, "headers": [self._stream_type]})
            self._engine.submit(job)
            outcome = await job.done
            if job.stalled_until > (now := asyncio.get_running_loop().time()):
                await connection.wait_lost(job.stalled_until - now)
            if self._work.stream:
                await self._end_stream(connection, outcome, send)
            else:
                await self._whole(connection, outcome, send)
        except asyncio.CancelledError:  # the server's grace for streams in flight is over
            abort()
            connection.close()
            raise
        finally:
            connection.forget(abort)

    def _on_step(self, connection: Connection, job: Job, choice: int, step: Step) -> None:
        stream = self._work.stream
        if self._seen.tokens == self._strike_at == 0 and self._strike(connection, job):
            return
        if stream:
            if not self._seen.tokens:
                for event in self._writer.opening():
                    connection.write_chunk(event)
            data = self._writer.step(choice, step)
            if data is not None:
                connection.write_chunk(data)
        self._seen.tokens += 1
        if self._seen.tokens == self._strike_at:
            self._strike(connection, job)

    def _strike(self, connection: Connection, job: Job) -> bool:
        """The fault in the middle of a reply; whether the reply ends with it."""
        fault = self._fault
        assert fault is not None
        if fault.kind == "engine_dead":
            self._engine.die()
            return True
        if fault.kind == "stall":
            self._engine.stall(job, fault.seconds)
        elif fault.kind == "bad_json" and self._work.stream:
            connection.write_chunk(_BAD_CHUNK)
        elif fault.kind == "die_mid_stream" and self._work.stream:
            connection.close()
            self._engine.abort(job)
            return True
        return False

    async def _end_stream(self, connection: Connection, outcome: Outcome, send: Send) -> None:
        if outcome == "aborted":
            await connection.wait_lost()
            return
        if outcome == "dead":
            last = self._writer.failure()
            if last is None:
                connection.close()
                await connection.wait_lost()
                return
            connection.write_chunk(last)
        else:
            for event in self._writer.closing():
                connection.write_chunk(event)
        if self._writer.end:
            connection.write_chunk(self._writer.end)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _whole(self, connection: Connection, outcome: Outcome, send: Send) -> None:
        if outcome == "aborted":
            return
        dead = outcome == "dead"
        body = internal_error().body() if dead else self._writer.whole(self._work.scripts)
        kind = self._fault.kind if self._fault and not dead else None
        if kind == "bad_json":
            body = body[: len(body) // 2]
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 500 if dead else 200, "headers": [length, self._whole_type]})
        if kind == "die_mid_stream":
            connection.write_raw(body[: len(body) // 2])
            connection.close()
            await connection.wait_lost()
            return
        await send({"type": "http.response.body", "body": body, "more_body": False})
