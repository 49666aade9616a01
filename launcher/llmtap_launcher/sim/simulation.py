"""What one simulated server holds: settings, tokenizer, engine, faults, and the log of what reached it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from .control import Rest
from .engine import Engine
from .faults import Rule, Rules
from .metrics import Metrics
from .text import Tokenizer, rng

Runner = Literal["all", "generate", "pooling"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `llmtap sim`."""

    host: str = "127.0.0.1"
    port: int = 8081
    models: tuple[str, ...] = ("sim-small",)
    tokens_per_second: float = 100.0  # of each stream; 0: as fast as possible
    ttft_ms: float = 20.0
    rules: tuple[Rule, ...] = ()
    api_key: str | None = None
    max_model_len: int = 32768
    max_num_seqs: int = 1024
    reasoning: bool = False
    request_id_headers: bool = False
    sleep_mode: bool = False
    shutdown_timeout_s: float = 5.0
    seed: int = 0
    runner: Runner = "all"  # which routes there are: a vLLM either generates or pools


@dataclass(slots=True)
class Seen:
    """One request that reached the server, as `GET /sim/requests` shows it."""

    id: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: str
    fault: str | None = None
    status: int | None = None
    tokens: int = 0  # generated so far
    finished: bool = False  # the whole response was written
    aborted: bool = False  # the client left before that

    def object(self) -> dict[str, Any]:
        """As JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class RequestLog:
    """The last requests, oldest first."""

    def __init__(self, keep: int = 200) -> None:
        self._seen: deque[Seen] = deque(maxlen=keep)
        self._count = 0

    def open(self, method: str, path: str, query: str, headers: dict[str, str], body: str) -> Seen:
        """Adds a request."""
        self._count += 1
        seen = Seen(self._count, method, path, query, headers, body)
        self._seen.append(seen)
        return seen

    def list(self, path: str | None = None) -> list[Seen]:
        """The requests kept, of one path or of all."""
        return [seen for seen in self._seen if path is None or seen.path == path]

    def clear(self) -> None:
        """Forgets all."""
        self._seen.clear()


@dataclass(slots=True)
class Simulation:
    """Everything a request handler needs."""

    settings: Settings
    tokenizer: Tokenizer
    metrics: Metrics
    engine: Engine
    rules: Rules
    log: RequestLog = field(default_factory=RequestLog)
    rest: Rest = field(default_factory=Rest)
    in_flight: int = 0
    refusing: bool = False
    #: set by the server: stop listening for so many seconds (infinite: for good), listen again
    refuse: Callable[[float], None] = lambda seconds: None
    accept: Callable[[], None] = lambda: None

    @classmethod
    def create(cls, settings: Settings, loop: asyncio.AbstractEventLoop) -> Simulation:
        """A fresh simulation on `loop`."""
        metrics = Metrics(settings.models[0], settings.max_model_len)
        return cls(
            settings=settings,
            tokenizer=Tokenizer(),
            metrics=metrics,
            engine=Engine(metrics, loop, settings.max_num_seqs),
            rules=Rules((r for r in settings.rules if not is_outage(r)), rng("faults", settings.seed)),
        )

    def add_rule(self, rule: Rule) -> None:
        """Puts a server-wide fault in force; an unconditional `refuse` closes the listening socket."""
        if is_outage(rule):
            self.refuse(rule.fault.seconds)
        else:
            self.rules.add(rule)

    def reset(self) -> None:
        """No faults, a living engine that is awake, an open socket, an empty log."""
        self.rules.clear()
        self.engine.revive()
        self.accept()
        self.rest.set(sleeping=False, paused=False)
        self.log.clear()


def is_outage(rule: Rule) -> bool:
    """Whether a rule takes the whole server off the network, rather than striking single requests."""
    return rule.fault.kind == "refuse" and rule.times is None and rule.probability == 1 and rule.path is None
