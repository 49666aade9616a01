"""What the gateway knows of its backends: reachable or not, which models, how busy. No I/O; times are passed in.

    unknown ──check ok──▶ up ◀───────check ok─────── down, asleep
                          │ ▲                          ▲
     requests fail on it  │ │ a request succeeds       │ check failed (from any state)
                          ▼ │                          │
                       failing ──after a while──▶ trial (one request at a time)

A backend that was never checked counts as usable: the first request of a fresh gateway must not fail because it was faster than
the first health check. `failing` is what requests say of a backend whose last check was good: it gets a request only where no
other serves the model. `asleep`: vLLM sleeps or is paused. `stopped`: somebody can start it (`starts_within_s`), and does when
`Backends.wanted` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

from llmtap.core.errors import NoHealthyBackend, NotFound
from llmtap.core.plan import Target
from llmtap.policy.balancing import POLICIES, Policy, seed_of, sticky

State = Literal["unknown", "up", "failing", "trial", "asleep", "down", "stopped"]
Kind = Literal["openai", "ollama"]
#: which backends a request may go to: those of a kind, any, or those that listen on a port
Scope = Kind | Literal["any"] | int
#: model names whose ways are kept
_REMEMBERED = 1024


@dataclass(slots=True, eq=False)
class Backend:
    """One upstream server. `fixed_models` come from the configuration, else `models` from its own list of them."""

    name: str
    host: str
    port: int
    tls: bool = False
    uds: str | None = None  # path of a UNIX socket, instead of host and port
    drain: bool = False  # it may finish what its client does not wait for any more
    api_key: str | None = field(default=None, repr=False)
    fixed_models: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    model_cards: tuple[dict[str, object], ...] = ()  # of /v1/models, made from the tags for Ollama
    tags: tuple[dict[str, object], ...] = ()  # of Ollama's /api/tags
    state: State = "unknown"
    reason: str = ""
    changed_at: float = 0.0
    in_flight: int = 0
    kind: Kind = "openai"
    max_concurrency: int = 256
    draining: bool = False  # gets no new requests; those in flight go on
    removed: bool = False
    starts_within_s: float | None = None  # of a stopped one that is started when asked for
    failures: int = 0  # requests that failed on it, one after the other
    trips: int = 0  # how often it has been taken for failing since it last worked
    doubted_since: float = 0.0  # monotonic clock: when it began to be failing, or on trial
    told: str = ""  # the state that was counted and logged last
    missed: int = 0  # checks without an answer, one after the other
    lacks: set[str] = field(default_factory=set, repr=False)  # paths a check asks for that it does not have
    last_ok: float = 0.0  # clock of the event loop when a response's head last came
    seed: int = field(init=False, repr=False)
    target: Target = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.seed = seed_of(self.name)
        self.target = _target(self)

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash."""
        if self.uds is not None:
            return f"unix://{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def usable(self) -> bool:
        """Whether it may get a request at all."""
        return self.state in ("up", "unknown", "trial", "failing") and not self.draining

    def serves(self, model: str | None) -> bool:
        """Whether it would take a request for `model`; None (no model named) goes anywhere, as vLLM has it."""
        known = self.fixed_models if self.fixed_models is not None else self.models
        if model is None or known is None or model in known:
            return True
        return ":" not in model and f"{model}:latest" in known  # as Ollama has it

    def facts(self) -> dict[str, Any]:
        """What is told of it, as plain data."""
        return {
            "name": self.name,
            "url": self.url,
            "state": self.state,
            "reason": self.reason,
            "kind": self.kind,
            "draining": self.draining,
            "in_flight": self.in_flight,
            "max_concurrency": self.max_concurrency,
            "models": list(self.fixed_models or self.models or ()),
        }

    def in_scope(self, scope: Scope) -> bool:
        if type(scope) is int:
            return scope == self.port and self.uds is None
        return scope == "any" or scope == self.kind


@dataclass(slots=True, eq=False)
class Way:
    """One name a model is served under, and who may get the request now. `members` is empty while `startable` is not: then it
    is worth waiting for these."""

    model: str | None
    members: tuple[Backend, ...]
    startable: tuple[Backend, ...] = ()
    turn: int = 0


class Shared:
    """What the backends of one configuration and of the next have in common, while requests of both run."""

    __slots__ = ("freed", "idle", "in_flight", "trials", "users")

    def __init__(self) -> None:
        self.in_flight = 0
        self.trials: set[Backend] = set()  # those whose one request is under way
        self.idle: dict[Backend, list[Callable[[], None]]] = {}
        self.freed: list[Callable[[], None]] = []  # those who wait, told when a backend may have room
        self.users: WeakSet[Backends] = WeakSet()

    def altered(self) -> None:
        """Who may get a request is no longer what it was."""
        for user in self.users:
            user.forget_ways()

    def tell_waiting(self) -> None:
        for call in list(self.freed):
            call()


class Backends:
    """All backends in configuration order, and the choice among them. `before`: those of the configuration before this one.

    `changed` is told when a backend's state changes, it comes or goes; `wanted` when a request waits for one to be started
    (again and again while it waits).
    """

    def __init__(
        self,
        backends: Iterable[Backend] = (),
        policy: str = "least_connections",
        aliases: Mapping[str, str] | None = None,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        max_concurrency: int | None = None,
        before: Backends | None = None,
    ) -> None:
        self._all = {b.name: b for b in backends}
        self._policy: Policy = POLICIES[policy]()
        self.by_prefix = policy == "prefix_hash"
        self.aliases = dict(aliases or {})
        self.fallbacks = dict(fallbacks or {})
        self.max_concurrency = max_concurrency
        self.changed: list[Callable[[Backend], None]] = []
        self.wanted: Callable[[Backend], None] | None = before.wanted if before is not None else None
        self._ways: dict[tuple[Scope, str | None], tuple[Way, ...]] = {}
        self.shared: Shared = before.shared if before is not None else Shared()
        self.shared.users.add(self)

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, name: str) -> Backend:
        return self._all[name]

    def __contains__(self, name: str) -> bool:
        return name in self._all

    @property
    def in_flight(self) -> int:
        """Requests at all of them."""
        return self.shared.in_flight

    def forget_ways(self) -> None:
        """Look anew who may get a request."""
        self._ways.clear()

    # ---- who may get a request

    def ways(self, scope: Scope, model: str | None) -> tuple[Way, ...]:
        """The ways to serve a request, the fallbacks of its model after the first; each has members, unless it is the only one
        and worth waiting for.

        Raises NotFound (`model_not_found`) when nobody serves the model, NoHealthyBackend when those who do are away.
        """
        found = self._ways.get((scope, model))
        return found if found is not None else self._find(scope, model)

    def _find(self, scope: Scope, model: str | None) -> tuple[Way, ...]:
        inside = [b for b in self._all.values() if b.in_scope(scope)]
        ways: list[Way] = []
        known = False
        for name in self._names(model):
            serving = [b for b in inside if b.serves(name)]
            known = known or bool(serving)
            members = _best(serving, self.shared.trials)
            if members:
                ways.append(Way(name, members))
            elif not ways:
                startable = tuple(b for b in serving if b.state == "stopped" and b.starts_within_s is not None and not b.draining)
                if startable:
                    ways.append(Way(name, (), startable))
                    break
        if not ways:
            if inside and not known and any(b.usable for b in inside):
                raise NotFound(f"The model `{model}` does not exist.", code="model_not_found", param="model")
            # a backend that is down keeps the models it last told of, one that never answered may serve anything
            raise NoHealthyBackend("no healthy backend serves this request; see /health/ready")
        if len(self._ways) >= _REMEMBERED:  # clients may make names up
            self._ways.clear()
        found = self._ways[scope, model] = tuple(ways)
        return found

    def one_model(self) -> bool:
        """Whether it makes no difference which model a request names: there is one backend, or all serve one and the same."""
        known = {b.fixed_models if b.fixed_models is not None else b.models for b in self._all.values()}
        if self.aliases or self.fallbacks:
            return False  # the name may have to be changed
        return len(self._all) < 2 or (len(known) == 1 and len(known.pop() or ()) == 1)

    def _names(self, model: str | None) -> Iterable[str | None]:
        """What the model is called by those who serve it: its own name, then its fallbacks'."""
        if model is None:
            return (None,)
        own = self.aliases.get(model, model)
        further = self.fallbacks.get(model) or self.fallbacks.get(own) or ()
        return dict.fromkeys((own, *(self.aliases.get(name, name) for name in further)))

    def pick(self, way: Way, key: int | None = None, session: int | None = None) -> Backend | None:
        """Who of a way gets the next request; None while nobody has room. `key`: how its prompt begins, `session`: it goes to
        the same backend as the others of its session. Nothing is counted: `take` does."""
        members = way.members
        if not members or (self.max_concurrency is not None and self.shared.in_flight >= self.max_concurrency):
            return None
        way.turn += 1
        policy = self._policy if session is None else sticky
        best = members[0] if len(members) == 1 else policy(members, way.turn, key if session is None else session)
        if best.in_flight < best.max_concurrency:
            return best
        room = [b for b in members if b.in_flight < b.max_concurrency]
        return policy(room, way.turn, key if session is None else session) if room else None

    def another(self, way: Way, tried: Sequence[Backend]) -> Backend | None:
        """Who gets a request that failed on those in `tried`: the least busy of the others (that it may already have all it is
        to get does not count: better a little too many than a failure)."""
        others = [b for b in way.members if b not in tried]
        return min(others, key=lambda b: b.in_flight) if others else None

    # ---- load

    def take(self, backend: Backend) -> None:
        """One more request is in flight there."""
        backend.in_flight += 1
        self.shared.in_flight += 1
        if backend.state == "trial":
            self.shared.trials.add(backend)
            self.shared.altered()

    def release(self, backend: Backend) -> None:
        """One request is over."""
        shared = self.shared
        backend.in_flight -= 1
        shared.in_flight -= 1
        if shared.trials and backend in shared.trials:
            shared.trials.discard(backend)
            shared.altered()
        if not backend.in_flight and backend in shared.idle:
            for call in shared.idle.pop(backend):
                call()
        if shared.freed:
            shared.tell_waiting()

    def when_idle(self, backend: Backend, call: Callable[[], None]) -> None:
        """`call` once nothing is in flight there (at once, if so now)."""
        if backend.in_flight:
            self.shared.idle.setdefault(backend, []).append(call)
        else:
            call()

    # ---- what becomes known of a backend

    def set_state(self, name: str, state: State, reason: str, now: float) -> bool:
        """Note the result of a check or of requests. True when the state changed."""
        backend = self._all[name]
        backend.reason = reason
        if backend.state == state:
            return False
        backend.state, backend.changed_at = state, now
        self.shared.trials.discard(backend)
        self._told(backend)
        return True

    def set_models(self, name: str, cards: tuple[dict[str, object], ...], models: tuple[str, ...]) -> None:
        """What it says it serves."""
        backend = self._all[name]
        backend.model_cards = cards
        if backend.models != models:
            backend.models = models
            self.shared.altered()
            self.shared.tell_waiting()

    def _told(self, backend: Backend) -> None:
        self.shared.altered()
        for call in self.changed:
            call(backend)
        self.shared.tell_waiting()

    # ---- at run time

    def add(self, backend: Backend) -> None:
        """One more, last in order. Raises ValueError when there is one of that name."""
        if backend.name in self._all:
            raise ValueError(f"there is a backend {backend.name} already")
        self._all[backend.name] = backend
        self._told(backend)

    def remove(self, name: str) -> Backend:
        """It gets no further request and is forgotten; those in flight go on (`when_idle`). Raises KeyError."""
        backend = self._all.pop(name)
        backend.removed = True
        self.shared.trials.discard(backend)
        self._told(backend)
        return backend

    def drain(self, name: str, on: bool = True) -> Backend:
        """It gets no further requests until this is turned off again; those in flight go on (`when_idle`). Raises KeyError."""
        backend = self._all[name]
        if backend.draining is not on:
            backend.draining = on
            self._told(backend)
        return backend

    # ---- for those who ask

    @property
    def has_ollama(self) -> bool:
        """Whether one of them is said to be an Ollama."""
        return any(b.kind == "ollama" for b in self._all.values())

    def healthy(self) -> bool:
        """Whether anybody would get a request and has passed its check."""
        return any(b.usable and b.state != "unknown" for b in self._all.values())

    def known(self, model: str) -> bool:
        """Whether the name is an alias or a model that some backend is known to serve."""
        return model in self.aliases or any(
            model in known and b.serves(model) for b in self._all.values() if (known := b.fixed_models or b.models)
        )

    def models(self, kind: Kind | None = None) -> list[dict[str, object]]:
        """The union of the model cards of backends that are usable, or started when asked for; first come first listed, then
        the aliases of models among them."""
        seen: dict[str, dict[str, object]] = {}
        for backend in self._all.values():
            startable = backend.state == "stopped" and backend.starts_within_s is not None
            if not (startable or backend.usable) or backend.state == "unknown" or (kind is not None and backend.kind != kind):
                continue
            cards: Sequence[dict[str, object]] = backend.model_cards
            if backend.fixed_models is not None:
                by_id = {str(c.get("id")): c for c in cards}
                cards = [by_id.get(m, {"id": m, "object": "model", "owned_by": backend.name}) for m in backend.fixed_models]
            for card in cards:
                seen.setdefault(str(card.get("id")), card)
        for alias, name in self.aliases.items():
            served = seen.get(name) or seen.get(f"{name}:latest")
            if served is not None and alias not in seen:
                seen[alias] = {**served, "id": alias, "root": served.get("root", name)}
        return list(seen.values())

    def tags(self) -> list[dict[str, object]]:
        """The union of what Ollama's `/api/tags` lists, of usable backends of that kind, aliases after the models."""
        seen: dict[str, dict[str, object]] = {}
        for backend in self._all.values():
            if backend.usable:
                for tag in backend.tags:
                    if backend.serves(str(tag.get("name"))):
                        seen.setdefault(str(tag.get("name")), tag)
        for alias, name in self.aliases.items():
            served = seen.get(name) or seen.get(f"{name}:latest")
            if served is not None and alias not in seen:
                seen[alias] = {**served, "name": alias, "model": alias}
        return list(seen.values())


def _best(serving: Sequence[Backend], trials: set[Backend]) -> tuple[Backend, ...]:
    """Those who get requests: the good ones and who is on trial, unless its request is under way; without them the failing."""
    free = [b for b in serving if not b.draining]
    good = tuple(b for b in free if b.state in ("up", "unknown") or (b.state == "trial" and b not in trials))
    return good or tuple(b for b in free if b.state in ("failing", "trial"))


def _target(backend: Backend) -> Target:
    if backend.uds is not None:
        host, header = "localhost", b"localhost"  # what the backend sees; nobody is asked for an address
    else:
        host = backend.host
        header = f"{f'[{host}]' if ':' in host else host}:{backend.port}".encode()
    headers = ((b"authorization", f"Bearer {backend.api_key}".encode()),) if backend.api_key else ()
    return Target(
        backend=backend.name,
        host=host,
        port=backend.port,
        tls=backend.tls,
        uds=backend.uds,
        host_header=header,
        drain=backend.drain,
        headers=headers,
    )
