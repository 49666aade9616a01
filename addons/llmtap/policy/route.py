"""What the gate has found out of a request, for those who find it a backend."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtap.policy.backends import Backend, Scope


@dataclass(slots=True, eq=False)
class Route:
    """`model`: as the client calls it, None when it names none. `scope`: which backends it may go to, and `only` the one that it
    has to. `key`: how its prompt begins, `session`: whose it is. `home`: the backend's name that has what it refers to."""

    scope: Scope
    model: str | None
    key: int | None = None
    session: int | None = None
    home: str | None = None
    only: Backend | None = None
    idempotent: bool = True  # else it is sent once, whatever happens
    # while it is carried out
    sent_as: str | None = None  # the model's name in `body`
    answered_as: str | None = None  # the name of the model that was asked last
    body: bytes = b""  # as it was sent first
    tried: list[Backend] = field(default_factory=list)
