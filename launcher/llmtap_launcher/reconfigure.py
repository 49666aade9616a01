"""A configuration file that changes while `llmtap up` runs: what can change without a restart reaches the gateway.

The gateway reads a private file that the launcher writes (see `gateway`), and watches that one. So when the user's file changes,
the private one is written anew, with the sections of `LIVE` taken over; the gateway decides itself what it makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmtap.core.config import Config
from llmtap.core.errors import ConfigError

from .plan import write_effective
from .process import Log

#: sections that a running gateway takes over
LIVE = ("auth", "rate_limit", "filters")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration came from: its file, what was read, and how to read it once more with the same command line."""

    path: Path
    read: Config
    again: Callable[[], Config]


def reconfigure(source: Source, running: Config, effective: Path, log: Log) -> None:
    """Read the file again and write `effective`; `running`: the configuration in force. A file that is wrong changes nothing."""
    try:
        fresh = source.again()
    except ConfigError as error:
        for line in str(error).splitlines():
            log("llmtap", f"the changed configuration is not used: {line}")
        return
    write_effective(running.model_copy(update={name: getattr(fresh, name) for name in LIVE}), effective)
    waiting = [name for name in Config.model_fields if name not in LIVE and getattr(fresh, name) != getattr(source.read, name)]
    if waiting:
        log("llmtap", f"the configuration has changed; waits for a restart: {', '.join(waiting)}")
