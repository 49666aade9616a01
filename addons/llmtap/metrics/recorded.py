"""One request as `MetricsRecorder` follows it: waiting, running, its tokens, its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from llmtap.metrics.recorder import MetricsRecorder

_TICK = 10_000  # gaps are kept in 0.1 ms


class RecordedRequest:
    """One request, timed by calls as it goes. Leaving the `with` block ends it: `ok`, or by the exception `client_abort`
    (cancelled, generator closed), `timeout` or `upstream_error`, unless `outcome` was called. Its calls come one at a time."""

    def __init__(
        self,
        recorder: MetricsRecorder,
        model: str,
        stream: bool,
        endpoint: str,
        backend: str,
        key: str,
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._model, self._stream, self._backend = model, stream, backend
        self._endpoint, self._key = endpoint, key
        self._started = self._clock()
        self._sent: float | None = None
        self._first: float | None = None
        self._last: float | None = None
        self._gaps: list[int] = []
        self._tokens = 0
        self._usage: tuple[int | None, int | None, int | None] = (None, None, None)
        self._reasons: list[str | None] = ["stop"]
        self._end: tuple[str, int] | None = None
        self._over = False
        recorder.increment_waiting(model)

    def admitted(self) -> None:
        """It is sent to a backend now. Waiting ends, running begins; later calls do nothing."""
        if self._sent is None and not self._over:
            self._sent = self._clock()
            self._recorder.decrement_waiting(self._model)
            self._recorder.increment_running(self._model, self._backend)

    def token(self, count: int = 1) -> None:
        """A piece of generated content has come (not the role chunk); `count`: how many tokens it is, as far as you know."""
        now = self._clock()
        if self._first is None:
            self._first = now
        elif self._last is not None:
            self._gaps.append(round((now - self._last) * _TICK))
        self._last = now
        self._tokens += count

    def usage(
        self, prompt_tokens: int | None = None, generation_tokens: int | None = None, cached_tokens: int | None = None
    ) -> None:
        """What the server counted. Without it, a stream's tokens are those told by `token`."""
        self._usage = (prompt_tokens, generation_tokens, cached_tokens)

    def finish(self, *reasons: str | None) -> None:
        """The finish reason of each choice."""
        self._reasons = list(reasons)

    def outcome(self, outcome: str, status: int) -> None:
        """How it ended, where leaving the block does not tell."""
        self._end = (outcome, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """End it. Only the first call counts."""
        if self._over:
            return
        self._over = True
        now, recorder = self._clock(), self._recorder
        if self._sent is None:
            recorder.decrement_waiting(self._model)
        else:
            recorder.decrement_running(self._model, self._backend)
        outcome, status = self._end or _outcome(error)
        prompt, generated, cached = self._usage
        if generated is None and self._stream and self._tokens:
            generated = self._tokens
        decode = None
        if self._first is not None and self._last is not None and self._stream and (status < 300 or outcome == "client_abort"):
            where = {"endpoint": self._endpoint, "backend": self._backend, "key": self._key}
            recorder.observe_time_to_first_token(self._first - self._started, self._model, **where)
            recorder.observe_gaps(self._gaps, max(1, len(self._reasons)), generated, self._model, **where)
            decode = self._last - self._first
        sent = self._sent
        recorder.finalize_request(
            self._model,
            outcome=outcome,
            status=status,
            finish_reason=self._reasons,
            prompt_tokens=prompt,
            generation_tokens=generated,
            cached_tokens=cached,
            e2e_seconds=now - self._started if sent is not None else None,
            inference_seconds=now - sent if sent is not None else None,
            queue_seconds=sent - self._started if sent is not None else None,
            prefill_seconds=self._first - sent if sent is not None and self._first is not None and decode is not None else None,
            decode_seconds=decode,
            endpoint=self._endpoint,
            backend=self._backend,
            key=self._key,
        )


def _outcome(error: BaseException | None) -> tuple[str, int]:
    if error is None:
        return "ok", 200
    if isinstance(error, TimeoutError):
        return "timeout", 504
    if isinstance(error, Exception):
        return "upstream_error", 502
    return "client_abort", 499  # cancelled, or the generator of the reply was closed
