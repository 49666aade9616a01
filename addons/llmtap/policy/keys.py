"""Client keys: found by their SHA-256, and taken out of a request before anybody records it.

Why a dict of digests is safe against timing: what is compared is the hash of the presented key, never the key. Whoever measures
how long a look-up takes learns at most something of how two SHA-256 digests agree, which cannot be steered without a preimage,
and the hash of a `bytes` object is keyed with a random seed of the process on top. A look-up takes the same way for a wrong key
as for a right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

from llmtap.core.config import Key

Fields = tuple[tuple[bytes, bytes], ...]
Period = Literal["day", "month", "total"]

#: header → whether its value has to be `Bearer KEY` (any other header that bears keys is removed, but not read)
_CREDENTIALS: dict[bytes, bool | None] = {
    b"authorization": True,
    b"x-api-key": False,
    b"api-key": None,
    b"x-goog-api-key": None,
    b"proxy-authorization": None,
}
_LENGTHS = frozenset(map(len, _CREDENTIALS))
#: query parameters that bear keys
_PARAMETERS = frozenset(("api_key", "api-key", "apikey", "access_token"))


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a request: a key's name and what it may do. `expires`: epoch seconds."""

    name: str
    models: frozenset[str] | None = None
    rate_limit: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    budget_usd: float | None = None
    budget_period: Period = "month"
    priority: int = 0
    expires: float | None = None


class Keyring:
    """The configured keys. Immutable: a reload makes a new one."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._clients = {key.digest: client_of(key) for key in keys}

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, presented: bytes) -> Client | None:
        """The holder of a key, or None."""
        return self._clients.get(sha256(presented).digest())


def client_of(key: Key) -> Client:
    """What the configuration says of a key's holder."""
    return Client(
        name=key.name,
        models=frozenset(key.models) if key.models is not None else None,
        rate_limit=key.rate_limit,
        tokens_per_minute=key.tokens_per_minute,
        max_concurrency=key.max_concurrency,
        budget_usd=key.budget_usd,
        budget_period=key.budget_period,
        priority=key.priority,
        expires=_epoch(key.expires),
    )


def _epoch(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def take(fields: Fields) -> tuple[Fields, list[bytes]]:
    """The header fields without those that bear keys, and the keys presented: of `Authorization` first, then of `x-api-key`."""
    found: list[bytes] = []
    kept = None
    for at, (name, value) in enumerate(fields):
        if len(name) in _LENGTHS and (lower := name.lower()) in _CREDENTIALS:
            if kept is None:
                kept = list(fields[:at])
            bearer = _CREDENTIALS[lower]
            if bearer:
                if value[:7].lower() == b"bearer ":
                    found.insert(0, value[7:].strip())
            elif bearer is False:
                found.append(value.strip())
        elif kept is not None:
            kept.append((name, value))
    return (fields, found) if kept is None else (tuple(kept), found)


def without_keys(target: str) -> str:
    """A request target without the query parameters that bear keys."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    parts = query.split("&")
    kept = [part for part in parts if part.partition("=")[0].lower() not in _PARAMETERS]
    if len(kept) == len(parts):
        return target
    return f"{path}?{'&'.join(kept)}" if kept else path


def allowed(client: Client, model: str | None) -> bool:
    """Whether this key may use `model`; None: the request names none, and nobody knows which one it would get."""
    return client.models is None or (model is not None and model in client.models)
