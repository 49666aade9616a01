"""When to start a process again that ended without being asked to: pure decisions, the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Seconds and counts of the restart rule.

    Waits double from `first_s` to `max_s` and begin anew after `healthy_s` of being ready. `crash_limit` exits within
    `crash_window_s` end the attempts, and so do `startup_limit` exits of a process that has not been ready once. One that was,
    and does not get there again, is tried for ever: what it needs may come back.
    """

    first_s: float = 1.0
    max_s: float = 30.0
    healthy_s: float = 60.0
    crash_limit: int = 5
    crash_window_s: float = 60.0
    startup_limit: int = 5


@dataclass(frozen=True, slots=True)
class History:
    """Exits so far: their times (clock seconds) in the current streak; whether it ever was ready."""

    exits: tuple[float, ...] = ()
    was_ready: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after `delay_s` seconds, or never (`delay_s` None, `reason` says why)."""

    delay_s: float | None
    history: History
    reason: str | None = None


def after_exit(policy: RestartPolicy, history: History, now: float, ready_since: float | None) -> Restart:
    """What to do about an exit at `now` of a process that was ready since `ready_since` (None: it never was)."""
    was_ready = history.was_ready or ready_since is not None
    healthy = ready_since is not None and now - ready_since >= policy.healthy_s
    exits = (*(() if healthy else history.exits), now)
    history = History(exits, was_ready)
    recent = [at for at in exits if now - at <= policy.crash_window_s]
    if len(recent) >= policy.crash_limit:
        return Restart(None, history, f"ended {len(recent)} times within {policy.crash_window_s:g} s")
    if not was_ready and len(exits) >= policy.startup_limit:
        return Restart(None, history, f"ended {_times(len(exits))} without getting ready")
    # 2 ** 1000 is no float: the exponent stops growing long after the wait has
    delay_s = min(policy.max_s, policy.first_s * 2.0 ** min(len(exits) - 1, 60))
    return Restart(delay_s, history)


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
