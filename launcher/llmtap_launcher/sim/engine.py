"""The simulated engine: one clock that hands out tokens to every running sequence when they are due.

There is no task and no sleep per stream: a heap holds the next due time of each sequence, one timer of the loop serves the
heap, and a token reaches its response by a plain call. That is what lets one core serve hundreds of streams at 100 tokens a
second each.
Like vLLM's scheduler it runs at most `max_num_seqs` sequences and keeps the rest waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .metrics import Metrics, Timeline
from .script import Step

Outcome = Literal["finished", "aborted", "dead"]
#: with no pace set, this many tokens are handed out before the loop gets to serve its sockets again
_BURST = 256
#: how soon a sequence whose client does not read is looked at again
_BLOCKED_RETRY_S = 0.01
#: a sequence that fell further behind than this (an overloaded machine) does not try to make it up in one burst
_MAX_LAG_S = 0.25


@dataclass(slots=True)
class Job:
    """One request to the engine: the scripts of its choices and what to call for each token.

    `on_step(choice, step)` runs on the loop and must not block. `blocked()` is True while the client does not read.
    """

    scripts: Sequence[Sequence[Step]]
    prompt_tokens: Sequence[int]  # for each choice
    max_tokens: int
    ttft_s: float
    interval_s: float
    on_step: Callable[[int, Step], None]
    done: asyncio.Future[Outcome]
    blocked: Callable[[], bool] = lambda: False
    stalled_until: float = 0.0
    open_choices: int = 0
    sequences: list[_Running] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Running:
    job: Job
    index: int
    steps: Sequence[Step]
    at: Timeline
    next: int = 0
    started: bool = False


class Engine:
    """Hands out tokens on time. Everything runs on one event loop; nothing here awaits."""

    def __init__(self, metrics: Metrics, loop: asyncio.AbstractEventLoop, max_num_seqs: int = 1024) -> None:
        self.metrics = metrics
        self.dead = False
        self.aborted = 0
        self._loop = loop
        self._max_num_seqs = max_num_seqs
        self._heap: list[tuple[float, int, _Running]] = []
        self._order = itertools.count()
        self._running: set[_Running] = set()
        self._waiting: deque[_Running] = deque()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._timer_due = float("inf")

    @property
    def running(self) -> int:
        """Sequences that are being generated now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Takes a job in; `job.done` gets its outcome. A dead engine answers at once."""
        if self.dead:
            job.done.set_result("dead")
            return
        now = self._loop.time()
        job.open_choices = len(job.scripts)
        for index, steps in enumerate(job.scripts):
            sequence = _Running(job, index, steps, Timeline(arrived=now))
            job.sequences.append(sequence)
            self._waiting.append(sequence)
        self._schedule()

    def abort(self, job: Job) -> None:
        """The client is gone: every sequence of the job stops now, before its next token."""
        if not job.open_choices:
            return
        self.aborted += 1
        self._drop(job, "aborted")
        self._schedule()

    def stall(self, job: Job, seconds: float) -> None:
        """No further token for `seconds` (infinite: until the client leaves); the job goes on occupying its place."""
        job.stalled_until = self._loop.time() + seconds

    def die(self) -> None:
        """What happens when vLLM's engine process is killed: every job ends as `dead`, new ones too, until `revive`."""
        self.dead = True
        for job in {id(s.job): s.job for s in (*self._running, *self._waiting)}.values():
            self._drop(job, "dead")
        self._schedule()

    def revive(self) -> None:
        """Makes a dead engine serve again (a restart of the server, in vLLM's case)."""
        self.dead = False

    def _drop(self, job: Job, outcome: Outcome) -> None:
        job.open_choices = 0
        for sequence in job.sequences:
            self._running.discard(sequence)
        self._waiting = deque(s for s in self._waiting if s.job is not job)
        if not job.done.done():
            job.done.set_result(outcome)

    def _schedule(self) -> None:
        now = self._loop.time()
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting.popleft()
            sequence.at.scheduled = now
            self._running.add(sequence)
            self.metrics.scheduled(sequence.job.prompt_tokens[sequence.index])
            self._push(now + sequence.job.ttft_s, sequence)
        self.metrics.queue_changed(len(self._running), len(self._waiting))

    def _push(self, due: float, sequence: _Running) -> None:
        heapq.heappush(self._heap, (due, next(self._order), sequence))
        if due < self._timer_due:
            self._arm(due)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        # pushes below must not arm the timer each: it is armed once, at the end
        self._timer, self._timer_due = None, float("-inf")
        # a timer may fire a clock tick early; what is due within it is due
        now = self._loop.time()
        tokens = 0
        try:
            while self._heap and self._heap[0][0] <= now + 0.0005 and tokens < _BURST:
                due, _, sequence = heapq.heappop(self._heap)
                if sequence in self._running:
                    tokens += self._advance(sequence, due, now)
        finally:
            if tokens:
                self.metrics.iteration(tokens)
            self._timer_due = float("inf")
            if self._heap:
                if self._heap[0][0] > now:
                    self._arm(self._heap[0][0])
                else:
                    self._timer_due = now
                    self._timer = self._loop.call_soon(self._tick)

    def _advance(self, sequence: _Running, due: float, now: float) -> int:
        job = sequence.job
        if now < job.stalled_until:
            if job.stalled_until != float("inf"):
                self._push(job.stalled_until, sequence)
            return 0
        if job.blocked():
            self._push(now + _BLOCKED_RETRY_S, sequence)
            return 0
        step = sequence.steps[sequence.next]
        sequence.next += 1
        if sequence.started:
            self.metrics.next_token(now - sequence.at.last)
        else:
            sequence.started = True
            sequence.at.first = now
            self.metrics.first_token(job.prompt_tokens[sequence.index], now - sequence.at.arrived)
        sequence.at.last = now
        job.on_step(sequence.index, step)
        if sequence not in self._running:  # the step killed the engine or the connection
            return 1
        if sequence.next == len(sequence.steps):
            self._finish(sequence, step)
        else:
            self._push(max(due + job.interval_s, now - _MAX_LAG_S), sequence)
        return 1

    def _finish(self, sequence: _Running, step: Step) -> None:
        job = sequence.job
        self._running.discard(sequence)
        reason = "length" if step.finish == "length" else "stop"
        self.metrics.sequence_done(reason, job.prompt_tokens[sequence.index], len(sequence.steps), job.max_tokens, sequence.at)
        job.open_choices -= 1
        if not job.open_choices:
            self.metrics.request_done(len(job.scripts), max(map(len, job.scripts)))
            if not job.done.done():
                job.done.set_result("finished")
        self._schedule()
