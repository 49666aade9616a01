"""Is each backend there, and what does it serve: one check a backend every `health_interval_s`, at once after a failure.

A check is `GET /health` and `GET /v1/models` (other servers than vLLM may lack the first: then the second decides).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from llmtap.policy.backends import Backend, Backends, State

log = logging.getLogger("llmtap.health")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check saw. `cards`: the entries of `/v1/models`, None when they are not known."""

    state: State
    reason: str = ""
    cards: tuple[dict[str, object], ...] | None = None


def look(backend: Backend, client: httpx.Client) -> Seen:
    """One check. Blocks for as long as the client's timeout allows; never raises for what a server or the network does."""
    base = "http://localhost" if backend.uds is not None else backend.url
    headers = {"authorization": f"Bearer {backend.api_key}"} if backend.api_key else {}
    try:
        answer = client.get(f"{base}/health")
        if answer.status_code >= 500:
            return Seen("down", f"/health answers {answer.status_code}")
        listing = client.get(f"{base}/v1/models", headers=headers)
        if listing.status_code in (401, 403) and backend.api_key is None:
            # reachable, but the list needs a key that only clients have
            return Seen("up")
        listing.raise_for_status()
        cards = tuple(c for c in listing.json()["data"] if isinstance(c, dict) and isinstance(c.get("id"), str))
    except httpx.HTTPStatusError as error:
        return Seen("down", f"/v1/models answers {error.response.status_code}")
    except httpx.HTTPError as error:
        return Seen("down", type(error).__name__)
    except (ValueError, KeyError, TypeError):
        return Seen("down", "/v1/models is no list of models")
    return Seen("up", "", cards)


class Health:
    """Keeps the state of `Backends` true. `start` and `stop` are called on the running event loop."""

    def __init__(self, backends: Backends, interval_s: float, connect_s: float, changed: Callable[[Backend], None]) -> None:
        self._backends = backends
        self._interval = interval_s
        self._timeout = httpx.Timeout(max(connect_s, 1.0))
        self._changed = changed
        self._wake = {b.name: asyncio.Event() for b in backends}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every check is noise
        self._tasks = [asyncio.create_task(self._watch(b), name=f"llmtap health {b.name}") for b in self._backends]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def failed(self, name: str, reason: str) -> None:
        """A request could not use this backend: out of the choice until a check succeeds, and check now."""
        self._note(name, "down", reason)
        self._wake[name].set()

    async def _watch(self, backend: Backend) -> None:
        wake = self._wake[backend.name]
        limits = httpx.Limits(max_keepalive_connections=0)
        # a thread asks, not the event loop that carries the traffic (and httpx's loop side does not get on with every loop)
        transport = httpx.HTTPTransport(uds=backend.uds, limits=limits) if backend.uds is not None else None
        with httpx.Client(timeout=self._timeout, trust_env=False, limits=limits, transport=transport) as client:
            while True:
                wake.clear()
                try:
                    seen = await asyncio.to_thread(look, backend, client)
                except Exception:
                    # a bug here must not end the checks: nobody would take the backend in again
                    log.exception("health check of %s failed", backend.name)
                    seen = Seen("down", "the check itself failed")
                self.take(backend, seen)
                with contextlib.suppress(TimeoutError):
                    # a backend that is down is looked at more often: it is what everybody waits for
                    await asyncio.wait_for(wake.wait(), self._interval if backend.state == "up" else min(self._interval, 1.0))
                    await asyncio.sleep(0.1)  # not in a tight loop while every request fails

    def take(self, backend: Backend, seen: Seen) -> None:
        """Note the result of a check."""
        if seen.cards is not None:
            backend.model_cards = seen.cards
            backend.models = tuple(str(card["id"]) for card in seen.cards)
        self._note(backend.name, seen.state, seen.reason)

    def _note(self, name: str, state: State, reason: str) -> None:
        if self._backends.set_state(name, state, reason, time.time()):
            backend = self._backends[name]
            log.info("backend %s (%s) is %s%s", name, backend.url, state, f": {reason}" if reason else "")
            self._changed(backend)
