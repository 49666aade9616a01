"""What the launcher knows of each backend while it runs: its configuration, its process, and whether that is to run now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmtap.core.config import Backend

from .process import Process, State
from .vllm import served_names

#: how long after a failed start on demand the next request may try again
RETRY_S = 30.0


@dataclass(slots=True, eq=False)
class Member:
    """A backend. `origin`: named by the configuration, or by the management API. `held`: it gets no requests, because it is
    stopped, being stopped or asleep; `anew`: it is, until the one whose place it takes has ended and it has started;
    `resumes`: the next request may start it; `draining`: an operator said so."""

    backend: Backend
    process: Process | None = None
    origin: Literal["file", "api"] = "file"
    held: bool = False
    anew: bool = False
    asleep: bool = False
    draining: bool = False
    resumes: bool = False
    entered: bool = True  # the gateways know it
    failed_at: float | None = None
    used_at: float = 0.0
    last_ok: float = 0.0

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def group(self) -> str | None:
        return self.backend.launch.group if self.backend.launch is not None else None

    @property
    def ttl_s(self) -> float | None:
        return self.backend.launch.ttl_s if self.backend.launch is not None else None

    @property
    def runs(self) -> bool:
        """Whether its process takes up memory of its own now (asleep it gave that back)."""
        return self.process is not None and self.process.state not in (State.STOPPED, State.FAILED) and not self.asleep

    def serves(self, model: str) -> bool:
        """Whether it is known to serve a model: by its configuration, or because it was started for it."""
        names: Iterable[str] = self.backend.models or ()
        if self.backend.launch is not None:
            names = (*names, *served_names(self.backend.launch), self.backend.launch.model)
        return model in names

    @property
    def state(self) -> str:
        """For people: remote, or its process's state, or asleep."""
        if self.process is None:
            return "remote"
        return "asleep" if self.asleep else str(self.process.state)

    def shown(self, patience_s: float, now: float) -> Mapping[str, Any]:
        """Its part of the picture that gateways get. `patience_s`: how long others of its group may take to make room."""
        picture: dict[str, Any] = {"draining": self.draining}
        process, launch = self.process, self.backend.launch
        if launch is None:
            return picture
        within = launch.startup_timeout_s + patience_s
        if process is None or self.anew:
            return {**picture, "stopped": True, "starts_within_s": within, "reason": "it is started anew"}
        ready = process.state is State.READY and not self.held
        if ready or not (self.held or self.resumes):
            return picture
        if self.failed_at is not None and now - self.failed_at < RETRY_S:
            return {**picture, "stopped": True, "starts_within_s": None, "reason": process.error or "it did not start"}
        if not self.resumes:
            return {**picture, "stopped": True, "starts_within_s": None, "reason": "stopped by an operator"}
        return {**picture, "stopped": True, "starts_within_s": within, "reason": "it starts when a request needs it"}
