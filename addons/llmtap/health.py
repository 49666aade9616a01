"""Is each backend there, and what does it serve: one check a backend every `health_interval_s`, at once after a failure.

A check is `GET /health` and `GET /v1/models` (servers other than vLLM may lack the first: then the second decides), of
Ollama `GET /api/tags`. vLLM's `/health` is 200 also while it sleeps or is paused and requests hang: `/is_sleeping` and
`/is_paused` tell, where a server has them.

What requests tell counts, too, but never alone takes the last backend of a model away:

    connection refused         failing until the check that follows at once says what is true
    5 failures in a row        (5xx, cut off or no answer before the first byte) failing, though its checks be good; after
                               `health_interval_s` (doubling up to 8 times that) one request at a time is tried: its success,
                               or as long without a failure, ends it
    no answer to a check       not held against a backend that answers requests: a slow one is not a dead one
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from llmtap.core.plan import FailureReason
from llmtap.policy.backends import Backend, Backends, State

log = logging.getLogger("llmtap.health")
#: failed requests in a row that make a backend failing
BURST = 5
#: unanswered checks in a row that make a backend down that was good
MISSES = 3
_REFUSES = "it refuses connections"
_GAP_S = 0.1  # between two checks at least: not in a tight loop while every request fails
_LONGEST = 8  # times health_interval_s: how long a failing backend waits for its trial at most
#: vLLM's two ways of not being ready: path, member of its answer, in words
_RESTS = (("/is_sleeping", "is_sleeping", "it sleeps"), ("/is_paused", "is_paused", "it is paused"))
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
Cards = tuple[dict[str, object], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check saw. `cards`: the entries of `/v1/models`, None when they are not known; `tags`: Ollama's own. `silent`: down
    because nothing came in time."""

    state: State
    reason: str = ""
    cards: Cards | None = None
    tags: Cards = ()
    silent: bool = False


def look(backend: Backend, client: httpx.Client) -> Seen:
    """One check. Blocks for as long as the client's timeout allows; never raises for what a server or the network does."""
    try:
        return _look_ollama(backend, client) if backend.kind == "ollama" else _look(backend, client)
    except httpx.HTTPStatusError as error:
        return Seen("down", f"{error.request.url.path} answers {error.response.status_code}")
    except httpx.ConnectTimeout:
        return Seen("down", "it does not accept connections in time", silent=True)
    except httpx.TimeoutException:
        return Seen("down", "it does not answer in time", silent=True)
    except httpx.HTTPError as error:
        if _at_an_end(error):
            return Seen("down", "no more connections can be opened here", silent=True)
        return Seen("down", type(error).__name__)
    except (ValueError, KeyError, TypeError):
        return Seen("down", f"{'/api/tags' if backend.kind == 'ollama' else '/v1/models'} is no list of models")


def _at_an_end(error: BaseException | None) -> bool:
    """Whether it is our own machine that can open no more connections: no fault of the backend's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OURS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _look(backend: Backend, client: httpx.Client) -> Seen:
    base = _base(backend)
    answer = client.get(f"{base}/health")
    if answer.status_code >= 500:
        return Seen("down", f"/health answers {answer.status_code}")
    listing = client.get(f"{base}/v1/models", headers=_key(backend))
    cards: Cards | None = None
    # with 401 or 403 it is reachable, but the list needs a key that only clients have
    if listing.status_code not in (401, 403) or backend.api_key is not None:
        listing.raise_for_status()
        cards = tuple(c for c in listing.json()["data"] if isinstance(c, dict) and isinstance(c.get("id"), str))
    for path, member, words in _RESTS:
        if path not in backend.lacks:
            rests = _member(client.get(base + path, headers=_key(backend)), member)
            if rests is True:
                return Seen("asleep", words, cards)
            if rests is None:
                backend.lacks.add(path)
    return Seen("up", "", cards)


def _member(answer: httpx.Response, name: str) -> bool | None:
    """A true or false in a JSON answer; None when there is none."""
    if answer.status_code != 200:
        return None
    try:
        found: Any = answer.json()
    except ValueError:
        return None
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, bool) else None


def _look_ollama(backend: Backend, client: httpx.Client) -> Seen:
    listing = client.get(f"{_base(backend)}/api/tags", headers=_key(backend))
    listing.raise_for_status()
    tags = tuple(t for t in listing.json()["models"] if isinstance(t, dict) and isinstance(t.get("name"), str))
    # as its own /v1/models says them
    cards = tuple({"id": t["name"], "object": "model", "created": _created(t), "owned_by": "library"} for t in tags)
    return Seen("up", "", cards, tags)


def _created(tag: Mapping[str, Any]) -> int:
    try:
        return int(datetime.fromisoformat(str(tag.get("modified_at"))).timestamp())
    except ValueError:
        return 0


def _base(backend: Backend) -> str:
    return "http://localhost" if backend.uds is not None else backend.url


def _key(backend: Backend) -> dict[str, str]:
    return {"authorization": f"Bearer {backend.api_key}"} if backend.api_key else {}


class Health:
    """Keeps the state of `Backends` true. `start` and `stop` are called on the running event loop."""

    def __init__(
        self, backends: Backends, interval_s: float, connect_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backends = backends
        self._interval = interval_s
        self._timeout = httpx.Timeout(max(connect_s, 1.0))
        self._clock = clock
        self._wake: dict[Backend, asyncio.Event] = {}
        self._tasks: dict[Backend, asyncio.Task[None]] = {}

    # ---- its life

    def start(self) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every check is noise
        for backend in self._backends:
            self.watch(backend)

    def watch(self, backend: Backend) -> None:
        """Check this one from now on. On the running event loop."""
        if backend not in self._tasks:
            self._wake[backend] = asyncio.Event()
            self._tasks[backend] = asyncio.create_task(self._watch(backend), name=f"llmtap health {backend.name}")

    def forget(self, backend: Backend) -> None:
        """Check it no longer."""
        task = self._tasks.pop(backend, None)
        if task is not None:
            task.cancel()
        self._wake.pop(backend, None)

    def stop(self) -> None:
        for backend in list(self._tasks):
            self.forget(backend)

    def check_now(self, backend: Backend) -> None:
        """Do not wait for the interval to pass."""
        wake = self._wake.get(backend)
        if wake is not None:
            wake.set()

    # ---- what requests tell

    def failed(self, backend: Backend, reason: FailureReason) -> None:
        """A request could not use this backend, or got an answer that is as good as none."""
        backend.failures += 1
        if reason == "refused":
            backend.lacks.clear()  # another server may come in its place
        if backend.state in ("up", "unknown", "trial") and (
            reason == "refused" or backend.state == "trial" or backend.failures >= BURST
        ):
            words = _REFUSES if reason == "refused" else f"requests fail ({reason.replace('_', ' ')})"
            backend.trips += 1
            backend.doubted_since = self._clock()
            self._note(backend, "failing", words)
        self.check_now(backend)

    def worked(self, backend: Backend) -> None:
        """A request was answered."""
        backend.failures = 0
        if backend.state in ("failing", "trial"):
            backend.trips = 0
            self._note(backend, "up", "")

    # ---- what checks tell

    def take(self, backend: Backend, seen: Seen) -> None:
        """Note the result of a check."""
        if backend.removed or backend.state == "stopped":
            return
        if seen.cards is not None:
            backend.tags = seen.tags
            self._backends.set_models(backend.name, seen.cards, tuple(str(card["id"]) for card in seen.cards))
        if seen.silent and backend.state in ("up", "failing", "trial"):
            backend.missed += 1
            answers = self._clock() - backend.last_ok <= 2 * self._interval + self._timeout_s
            if answers or backend.missed < MISSES:
                return
        if not seen.silent:
            backend.missed = 0
        if seen.state == "down":
            backend.lacks.clear()
        if seen.state != "up":
            self._note(backend, seen.state, seen.reason)
        elif backend.state in ("failing", "trial"):
            self._reconsider(backend)
        elif backend.state != "up":  # a good check says nothing of the requests that fail meanwhile
            self._note(backend, "up", "")

    @property
    def _timeout_s(self) -> float:
        return self._timeout.read or 0.0

    def _reconsider(self, backend: Backend) -> None:
        """Its check is good, but requests failed on it."""
        if backend.reason == _REFUSES:
            self._note(backend, "up", "")
            return
        doubted = self._clock() - backend.doubted_since
        if backend.state == "trial":
            if doubted >= self._interval:
                self._note(backend, "up", "")  # nobody has asked, or is still waiting: it fails again, or it does not
        elif doubted >= self._interval * min(_LONGEST, 2 ** (backend.trips - 1)):
            backend.doubted_since = self._clock()
            self._note(backend, "trial", "one request at a time")

    def _note(self, backend: Backend, state: State, reason: str) -> None:
        if backend.removed:
            return
        if state == "up":
            backend.failures = 0
        self._backends.set_state(backend.name, state, reason, time.time())

    # ---- the checks

    async def _watch(self, backend: Backend) -> None:
        wake, loop = self._wake[backend], asyncio.get_running_loop()
        limits = httpx.Limits(max_keepalive_connections=0)
        # a thread asks, not the event loop that carries the traffic (and httpx's loop side does not get on with every loop)
        transport = httpx.HTTPTransport(uds=backend.uds, limits=limits) if backend.uds is not None else None
        with httpx.Client(timeout=self._timeout, trust_env=False, limits=limits, transport=transport) as client:
            while True:
                wake.clear()
                if backend.state != "stopped":
                    try:
                        seen = await asyncio.to_thread(look, backend, client)
                    except Exception:
                        # a bug here must not end the checks: nobody would take the backend in again
                        log.exception("health check of %s failed", backend.name)
                        seen = Seen("down", "the check itself failed")
                    self.take(backend, seen)
                looked = loop.time()
                with contextlib.suppress(TimeoutError):
                    # a backend that is down is looked at more often: it is what everybody waits for
                    await asyncio.wait_for(wake.wait(), self._interval if backend.state == "up" else min(self._interval, 1.0))
                await asyncio.sleep(max(0.0, looked + _GAP_S - loop.time()))
