"""A configuration file that is read again while `llmtap up` runs: what of it can change without a restart.

The gateway reads a private file that the launcher writes (see `gateway`). Where it listens, which processes there are beside it
and where captures go is decided once, at the start; everything else follows the file, backends too (`fleet`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmtap.core.config import Config, Server

#: sections that take a restart
FIXED = ("capture", "store", "datasette", "metrics")
#: keys of `server` that do
FIXED_SERVER = ("host", "port", "workers", "web", "tls_cert", "tls_key")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration came from: its file, what was read, and how to read it once more with the same command line."""

    path: Path
    read: Config
    again: Callable[[], Config]


def taken_over(running: Config, fresh: Config) -> Config:
    """`fresh` as far as it can be had now: what is fixed stays as in `running`. Its backends are still to be settled."""
    fixed = {name: getattr(running, name) for name in FIXED}
    server = fresh.server.model_copy(update={name: getattr(running.server, name) for name in FIXED_SERVER})
    return fresh.model_copy(update={**fixed, "server": server})


def waits_for_restart(read: Config, fresh: Config) -> list[str]:
    """What has changed between two readings of the file and takes a restart: sections, and keys of `server`."""
    keys = [f"server.{name}" for name in Server.model_fields if name in FIXED_SERVER]
    changed = [key for key in keys if getattr(read.server, key[7:]) != getattr(fresh.server, key[7:])]
    return changed + [name for name in FIXED if getattr(read, name) != getattr(fresh, name)]
