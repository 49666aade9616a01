"""Health checks: what each answer of a backend means, and what requests add. The network is httpx's mock transport."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtap.health import BURST, MISSES, Health, Seen, look
from llmtap.policy.backends import Backend, Backends, State

MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "n"}]}
Handler = Callable[[httpx.Request], httpx.Response]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Under:
    """Health over one backend, without its tasks: the test says what checks and requests bring."""

    def __init__(self, state: State = "up", interval_s: float = 5.0, **more: Any) -> None:
        self.clock = Clock()
        self.backend = Backend("a", "127.0.0.1", 1, state=state, **more)
        self.backends = Backends([self.backend])
        self.health = Health(self.backends, interval_s, 1, self.clock)

    @property
    def state(self) -> State:
        return self.backend.state

    def check(self, handler: Handler) -> Backend:
        with httpx.Client(transport=httpx.MockTransport(handler)) as client:
            self.health.take(self.backend, look(self.backend, client))
        return self.backend

    def silent(self, times: int = 1) -> None:
        for _ in range(times):
            self.health.take(self.backend, Seen("down", "no answer", silent=True))

    def fails(self, reason: Any = "status", times: int = 1) -> None:
        for _ in range(times):
            self.health.failed(self.backend, reason)


def answering(health: int = 200, models: int = 200, listing: object = MODELS, **paths: object) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/health":
            return httpx.Response(health)
        if path == "/v1/models":
            return httpx.Response(models, json=listing)
        told = paths.get(path[1:])
        return httpx.Response(404, json={"detail": "Not Found"}) if told is None else httpx.Response(200, json=told)

    return handler


# ---- checks


def test_a_vllm() -> None:
    backend = Under("unknown").check(answering())
    assert backend.state == "up" and backend.models == ("m", "n")


def test_a_server_without_health_is_judged_by_its_models() -> None:
    assert Under("unknown").check(answering(health=404)).state == "up"


@pytest.mark.parametrize(
    "handler", [answering(health=503), answering(models=500), answering(listing={"nope": 1}), answering(listing=[1])]
)
def test_what_is_down(handler: Handler) -> None:
    backend = Under().check(handler)
    assert backend.state == "down" and backend.reason


def test_no_connection() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert (backend := Under().check(handler)).reason == "ConnectError" and backend.state == "down"


def test_the_key_is_not_sent_to_health() -> None:
    seen: dict[str, str | None] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        seen[request.url.path] = request.headers.get("authorization")
        return answering()(request)

    Under(api_key="k").check(handler)
    assert seen == {"/health": None, "/v1/models": "Bearer k", "/is_sleeping": "Bearer k", "/is_paused": "Bearer k"}


def test_a_list_that_only_clients_may_see() -> None:
    backend = Under("unknown").check(answering(models=401))
    assert backend.state == "up" and backend.models is None
    assert Under(api_key="wrong").check(answering(models=401)).state == "down"


@pytest.mark.parametrize(
    ("told", "state", "reason"),
    [
        ({"is_sleeping": {"is_sleeping": True}}, "asleep", "it sleeps"),
        ({"is_paused": {"is_paused": True}}, "asleep", "it is paused"),
        ({"is_sleeping": {"is_sleeping": False}, "is_paused": {"is_paused": False}}, "up", ""),
        ({"is_sleeping": {"is_sleeping": "yes"}}, "up", ""),
        ({"is_sleeping": [1]}, "up", ""),
    ],
)
def test_a_healthy_vllm_that_rests_is_not_ready(told: dict[str, object], state: State, reason: str) -> None:
    backend = Under().check(answering(**told))
    assert (backend.state, backend.reason, backend.models) == (state, reason, ("m", "n"))
    assert backend.usable == (state == "up")


def test_a_server_is_asked_once_for_what_it_does_not_have_until_it_may_be_another() -> None:
    under = Under()
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return answering(is_paused={"is_paused": False})(request)

    under.check(handler)
    under.check(handler)
    assert asked.count("/is_sleeping") == 1 and asked.count("/is_paused") == 2
    under.check(answering(health=503))
    under.check(handler)
    assert asked.count("/is_sleeping") == 2


def test_an_ollama() -> None:
    tags = [{"name": "llama3:latest", "modified_at": "2026-08-01T10:00:00Z"}, {"name": "odd"}, {"no": "name"}]

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/tags"
        return httpx.Response(200, json={"models": tags})

    backend = Under("unknown", kind="ollama").check(handler)
    assert backend.state == "up" and backend.models == ("llama3:latest", "odd") and backend.serves("llama3")
    assert backend.tags == tuple(tags[:2])
    card = {"id": "llama3:latest", "object": "model", "created": 1785578400, "owned_by": "library"}
    assert backend.model_cards[0] == card and backend.model_cards[1]["created"] == 0


def test_an_ollama_that_is_none() -> None:
    under = Under(kind="ollama")
    assert under.check(lambda request: httpx.Response(404)).reason == "/api/tags answers 404"
    assert under.check(lambda request: httpx.Response(200, json={"data": []})).reason == "/api/tags is no list of models"


# ---- a slow backend is not a dead one


def raising(error: Exception) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    return handler


@pytest.mark.parametrize("error", [httpx.ReadTimeout("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")])
def test_silence_is_told_from_refusal(error: Exception) -> None:
    backend = Backend("a", "127.0.0.1", 1)
    with httpx.Client(transport=httpx.MockTransport(raising(error))) as client:
        assert look(backend, client).silent


def test_when_we_have_no_sockets_left_it_is_not_the_backends_fault() -> None:
    cause = OSError(errno.EMFILE, "Too many open files")
    error = httpx.ConnectError("x")
    error.__cause__ = cause
    backend = Backend("a", "127.0.0.1", 1)
    with httpx.Client(transport=httpx.MockTransport(raising(error))) as client:
        seen = look(backend, client)
    assert seen.silent and "here" in seen.reason


def test_one_missed_check_takes_nobody_out_several_do() -> None:
    under = Under()
    under.silent(MISSES - 1)
    assert under.state == "up"
    under.silent()
    assert under.state == "down"


def test_an_answer_between_counts() -> None:
    under = Under()
    for _ in range(5):
        under.silent(MISSES - 1)
        under.check(answering())
    assert under.state == "up"


def test_who_answers_requests_is_alive_however_slow_its_checks() -> None:
    under = Under()
    for _ in range(10):
        under.backend.last_ok = under.clock.now
        under.clock.now += 5
        under.silent()
    assert under.state == "up"
    under.clock.now += 100
    under.silent()
    assert under.state == "down"


def test_one_that_never_answered_is_down_at_once() -> None:
    under = Under("unknown")
    under.silent()
    assert under.state == "down"


# ---- what requests tell


def test_a_refused_connection_is_believed_until_the_check() -> None:
    under = Under()
    under.fails("refused")
    assert under.state == "failing" and "refuses" in under.backend.reason
    under.check(answering())
    assert under.state == "up"
    under.fails("refused")
    under.check(raising(httpx.ConnectError("x")))
    assert under.state == "down"
    under.fails("refused")
    assert under.state == "down"
    under.check(answering())
    assert under.state == "up" and under.backend.failures == 0


@pytest.mark.parametrize("reason", ["status", "closed", "reset", "first_byte_timeout", "protocol", "connect_timeout"])
def test_a_burst_trips_single_failures_do_not(reason: str) -> None:
    under = Under()
    under.fails(reason, BURST - 1)
    assert under.state == "up"
    under.health.worked(under.backend)
    under.fails(reason, BURST - 1)
    under.check(answering())
    assert under.state == "up", "a good check between them changes nothing"
    under.fails(reason)
    assert under.state == "failing"


def test_half_open_recovery() -> None:
    under = Under()
    under.fails(times=BURST)
    under.check(answering())
    assert under.state == "failing", "its checks were good all along: they say nothing"
    under.clock.now += 5
    under.check(answering())
    assert under.state == "trial"
    under.health.worked(under.backend)
    assert under.state == "up" and under.backend.trips == 0


def test_a_trial_that_nobody_asks_for_ends_by_itself() -> None:
    under = Under()
    under.fails(times=BURST)
    under.clock.now += 5
    under.check(answering())
    assert under.state == "trial"
    under.clock.now += 4
    under.check(answering())
    assert under.state == "trial"
    under.clock.now += 1
    under.check(answering())
    assert under.state == "up" and under.backend.trips == 1, "should it fail again, it waits longer"


def test_a_failed_trial_waits_longer_and_longer() -> None:
    under = Under()
    under.fails(times=BURST)
    pauses = []
    for _ in range(6):
        began = under.clock.now
        while under.state != "trial":
            under.clock.now += 1
            under.check(answering())
        pauses.append(under.clock.now - began)
        under.fails()
        assert under.state == "failing"
    assert pauses == [5, 10, 20, 40, 40, 40]


def test_what_works_again_is_up_without_a_trial() -> None:
    under = Under()
    under.fails(times=BURST)
    under.health.worked(under.backend)
    assert under.state == "up"


def test_a_stopped_or_removed_backend_is_left_alone() -> None:
    under = Under("stopped")
    under.check(answering())
    under.fails("refused")
    assert under.state == "stopped"
    under = Under()
    under.backends.remove("a")
    under.check(answering(health=503))
    under.fails("refused")
    assert under.state == "up"


def test_many_failures_at_the_same_time_are_one_trip() -> None:
    under = Under()
    told: list[State] = []
    under.backends.changed.append(lambda b: told.append(b.state))
    under.fails("refused", 500)
    assert told == ["failing"] and under.backend.trips == 1


# ---- the tasks


async def test_start_and_stop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and never answers
        changed = asyncio.Event()
        backends = Backends([Backend("a", *listener.getsockname())])
        backends.changed.append(lambda b: changed.set())
        health = Health(backends, 5, 0.1)
        health.start()
        tasks = list(health._tasks.values())
        await asyncio.wait_for(changed.wait(), 20)
        health.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [asyncio.CancelledError] and not health._tasks


class Looks:
    """Takes the place of `look`: outcomes in order, the last for ever, each noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: Seen | Exception) -> None:
        self.outcomes = list(outcomes)
        self.count = 0
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        monkeypatch.setattr("llmtap.health.look", self)

    def __call__(self, backend: Backend, client: httpx.Client) -> Seen:
        self.count += 1
        self.loop.call_soon_threadsafe(self.changed.set)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def more(self) -> None:
        self.changed.clear()
        await asyncio.wait_for(self.changed.wait(), 20)


async def test_a_check_that_breaks_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    Looks(monkeypatch, RuntimeError("a bug"), Seen("up"))
    up = asyncio.Event()
    backends = Backends([Backend("a", "127.0.0.1", 1)])
    backends.changed.append(lambda b: up.set() if b.state == "up" else None)
    health = Health(backends, 0.01, 1)
    health.start()
    await asyncio.wait_for(up.wait(), 20)
    health.stop()


async def test_a_backend_on_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    hosts: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            hosts.append(head.split(b"ost: ")[1].split(b"\r\n")[0].decode())
            body = b'{"object":"list","data":[{"id":"m"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))
            writer.close()
            return

    changed = asyncio.Event()
    server = await asyncio.start_unix_server(serve, path)
    backend = Backend("a", "", 80, uds=path)
    backends = Backends([backend])
    backends.changed.append(lambda b: changed.set())
    health = Health(backends, 5, 1)
    health.start()
    await asyncio.wait_for(changed.wait(), 5)
    health.stop()
    server.close()
    assert backend.state == "up" and backend.models == ("m",) and set(hosts) == {"localhost"}


async def test_a_failure_is_followed_by_a_check_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, Seen("up"))
    backends = Backends([Backend("a", "127.0.0.1", 1)])
    health = Health(backends, 3600, 1)
    health.start()
    await looks.more()
    health.failed(backends["a"], "closed")
    await looks.more()
    health.check_now(backends["a"])
    await looks.more()
    health.check_now(Backend("unknown", "h", 1))
    assert looks.count == 3
    health.stop()


async def test_watching_begins_and_ends_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch, Seen("up"))
    backends = Backends()
    health = Health(backends, 0.01, 1)
    health.start()
    added = Backend("a", "127.0.0.1", 1)
    backends.add(added)
    health.watch(added)
    health.watch(added)
    assert len(health._tasks) == 1
    await looks.more()
    task = health._tasks[added]
    health.forget(added)
    health.forget(added)
    await asyncio.wait([task])
    assert task.cancelled()
