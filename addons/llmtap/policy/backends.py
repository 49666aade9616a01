"""What the gateway knows of its backends: reachable or not, which models, how busy. No I/O; times are passed in.

    unknown ──check ok──▶ up ◀──check ok── down
       └──────check failed / connection failed──▶

A backend that was never checked counts as usable: the first request of a fresh gateway must not fail because it was
faster than the first health check. One failed connection takes a backend out until the next successful check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmtap.core.errors import NoHealthyBackend, NotFound
from llmtap.policy.balancing import POLICIES, Load

State = Literal["unknown", "up", "down"]


@dataclass(slots=True)
class Backend:
    """One upstream server. `fixed_models` come from the configuration, else `models` from its own `/v1/models`."""

    name: str
    host: str
    port: int
    tls: bool = False
    uds: str | None = None  # path of a UNIX socket, instead of host and port
    drain: bool = False  # it may finish what its client does not wait for any more
    api_key: str | None = field(default=None, repr=False)
    fixed_models: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    model_cards: tuple[dict[str, object], ...] = ()
    state: State = "unknown"
    reason: str = ""
    changed_at: float = 0.0
    in_flight: int = 0

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash."""
        if self.uds is not None:
            return f"unix://{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def usable(self) -> bool:
        return self.state != "down"

    def serves(self, model: str | None) -> bool:
        """Whether it would take a request for `model`; None (no model named) goes anywhere, as vLLM has it."""
        known = self.fixed_models if self.fixed_models is not None else self.models
        return model is None or known is None or model in known


class Backends:
    """All backends in configuration order, and the choice among them."""

    def __init__(self, backends: Iterable[Backend], policy: str = "least_connections") -> None:
        self._all = {b.name: b for b in backends}
        self._policy = POLICIES[policy]
        self._turn = 0

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, name: str) -> Backend:
        return self._all[name]

    def choose(self, model: str | None) -> list[Backend]:
        """The backends for a request in the order to try.

        Raises NotFound (`model_not_found`) when nobody serves the model, NoHealthyBackend when those who do are down.
        """
        serving = [b for b in self._all.values() if b.serves(model)]
        usable = [b for b in serving if b.usable]
        if usable:
            if len(usable) > 1:
                self._turn += 1
                order = self._policy([Load(b.name, b.in_flight) for b in usable], self._turn % len(usable))
                return [self._all[name] for name in order]
            return usable
        if serving or not any(b.usable for b in self._all.values()):
            # a backend that is down keeps the models it last told of, one that never answered may serve anything
            raise NoHealthyBackend("no healthy backend serves this request; see /health/ready")
        raise NotFound(f"The model `{model}` does not exist.", code="model_not_found", param="model")

    def one_model(self) -> bool:
        """Whether it makes no difference which model a request names: there is one backend, or all serve one and the same."""
        known = {b.fixed_models if b.fixed_models is not None else b.models for b in self._all.values()}
        return len(self._all) < 2 or (len(known) == 1 and len(known.pop() or ()) == 1)

    def healthy(self) -> bool:
        return any(b.state == "up" for b in self._all.values())

    def set_state(self, name: str, state: State, reason: str, now: float) -> bool:
        """Note the result of a check or of a failed connection. True when the state changed."""
        backend = self._all[name]
        changed = backend.state != state
        backend.reason = reason
        if changed:
            backend.state, backend.changed_at = state, now
        return changed

    def models(self) -> list[dict[str, object]]:
        """The union of the model cards of usable backends, first come first listed, in OpenAI's shape."""
        seen: dict[str, dict[str, object]] = {}
        for backend in self._all.values():
            if backend.state != "up":
                continue
            cards: Sequence[dict[str, object]] = backend.model_cards
            if backend.fixed_models is not None:
                by_id = {str(c.get("id")): c for c in cards}
                cards = [by_id.get(m, {"id": m, "object": "model", "owned_by": backend.name}) for m in backend.fixed_models]
            for card in cards:
                seen.setdefault(str(card.get("id")), card)
        return list(seen.values())
