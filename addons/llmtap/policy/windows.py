"""Sliding windows, exact: in no stretch of time as long as the window is more taken than the limit. Pure; the clock is passed in.

Every taking is remembered with its time until it is as old as the window. (A counter a minute lets twice the limit through around
the full minute, the usual blend of two counters lets through what a guess allows.) Times come from a clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: windows kept before those that have run empty are looked for
_SWEEP_AT = 4096


@dataclass(slots=True, eq=False)
class Taking:
    """One reservation. `amount` may be corrected afterwards (`Window.settle`) while it counts."""

    at: float
    amount: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether there was room. `remaining`: of the limit, after this. Seconds: `reset_s` until the window would be empty again,
    `retry_s` until this would be let in (0 when it was)."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_s: float = 0.0


class Window:
    """The takings of one key."""

    __slots__ = ("_takings", "_total")

    def __init__(self) -> None:
        self._takings: deque[Taking] = deque()  # oldest first
        self._total = 0

    def take(self, now: float, seconds: float, limit: int, amount: int = 1) -> tuple[Verdict, Taking | None]:
        """Reserve `amount` if it fits. More than the limit at once counts as the limit: it has to wait for an empty window."""
        self.forget(now - seconds)
        amount = min(amount, limit)
        takings = self._takings
        if self._total + amount <= limit:
            taking = Taking(now, amount)
            takings.append(taking)
            self._total += amount
            return Verdict(True, limit, limit - self._total, seconds), taking
        too_much = self._total + amount - limit
        for taking in takings:
            too_much -= taking.amount
            if too_much <= 0:
                break
        verdict = Verdict(False, limit, max(0, limit - self._total), takings[-1].at + seconds - now, taking.at + seconds - now)
        return verdict, None

    def settle(self, taking: Taking, actual: int) -> None:
        """What a taking turned out to be. More than reserved is a debt that later ones wait for; too late is no use."""
        if taking.counts:
            self._total += actual - taking.amount
        taking.amount = actual

    def forget(self, until: float) -> None:
        """Drop what was taken at `until` or before."""
        takings = self._takings
        while takings and takings[0].at <= until:
            taking = takings.popleft()
            taking.counts = False
            self._total -= taking.amount

    @property
    def empty(self) -> bool:
        """Nothing in it. Only what was forgotten is gone."""
        return not self._takings


class Windows:
    """A window a name."""

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, name: str, now: float, seconds: float, limit: int, amount: int = 1) -> tuple[Verdict, Taking | None]:
        """`Window.take` of this name's."""
        window = self._windows.get(name)
        if window is None:
            if len(self._windows) >= self._sweep_at:
                self._sweep(now - seconds)
            window = self._windows[name] = Window()
        return window.take(now, seconds, limit, amount)

    def settle(self, name: str, taking: Taking, actual: int) -> None:
        """`Window.settle` of this name's."""
        window = self._windows.get(name)
        if window is not None:
            window.settle(taking, actual)

    def _sweep(self, until: float) -> None:
        """Names may be addresses: without end. Those that have gone quiet are forgotten."""
        for name, window in list(self._windows.items()):
            window.forget(until)
            if window.empty:
                del self._windows[name]
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._windows))


def duration(seconds: float) -> str:
    """Seconds as OpenAI's reset headers have them: 20ms, 1.5s, 6m0s, 1h2m3s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    whole, rest = divmod(round(seconds, 3), 60)
    minutes = int(whole)
    text = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


def estimate_tokens(body_bytes: int, max_tokens: int | None, n: int | None, usual: int) -> int:
    """Tokens a request may cost, before it is sent: four bytes a prompt token, and as many as it may generate (`usual` where it
    does not say)."""
    return body_bytes // 4 + (usual if max_tokens is None else max_tokens) * max(1, n or 1)
