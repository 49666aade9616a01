"""What both clients have: arguments, the log, counts, and how they use httpx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from llmtap.middleware.journal import Journal
from llmtap.middleware.logs import QueryRecord, load_logs
from llmtap.middleware.settings import Settings
from llmtap.middleware.statistics import Statistics

Messages = Sequence[Mapping[str, Any]]

#: as many connections as there are calls
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)


class Logged:
    """A client that logs its calls. Raises SpoolError for a folder that cannot be written."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._journal = Journal(settings.log_dir, settings.segment_bytes)
        self._statistics = Statistics()
        self._model = settings.model

    def get_statistics(self) -> dict[str, Any]:
        """Counts, tokens and latencies (ms) of this client's calls; `log_dropped`: what a full disk kept out of the log."""
        return {**self._statistics.figures(), "log_dropped": self._journal.dropped}

    def load_logs(self) -> list[QueryRecord]:
        """The calls in the log folder, of all clients that write there, in the order of their time. Empty without a log."""
        return [] if self._settings.log_dir is None else load_logs(self._settings.log_dir)


def patience(seconds: float | None) -> httpx.Timeout:
    """Seconds until the next byte; 5 at most for a connection."""
    return httpx.Timeout(seconds, connect=5.0 if seconds is None else min(5.0, seconds))


def is_stream(response: httpx.Response) -> bool:
    """Whether an answer is server-sent events."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower() == "text/event-stream"
