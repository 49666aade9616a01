"""`llmtap up --workers 2`: two gateways on one port that look like one, also when one of them is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llmtap_launcher import guard
from support.gateway import free_port
from support.launcher import Up, llmtap, running_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
]
CHAT = "/v1/chat/completions"
QUICK: dict[str, Any] = {"model": "sim-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture
def sim() -> Iterator[SimHandle]:
    with running_sim(tokens_per_second=40, ttft_ms=1) as running:
        yield running


def workers(up: Up) -> dict[str, int]:
    """Name -> process id of the gateway's processes."""
    return {name: pid for name, pid in up.pids().items() if name.startswith("gateway")}


@contextmanager
def connections(up: Up, headers: dict[str, str] | None = None) -> Iterator[dict[int, httpx.Client]]:
    """A connection to each worker, by process id."""
    with ExitStack() as stack:
        found: dict[int, httpx.Client] = {}

        def one_more() -> bool:
            limits = httpx.Limits(max_connections=1)
            client = httpx.Client(base_url=up.url, timeout=60, limits=limits, headers=headers)
            stack.callback(client.close)  # another one to the same worker stays open: the kernel does not deal it again
            found.setdefault(client.get("/stats").raise_for_status().json()["workers"][0]["pid"], client)
            return set(workers(up).values()) <= set(found)

        eventually(one_more, "a worker never gets a connection")
        yield found


def metric(up: Up, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels, of whichever worker answers."""
    families = httpx.get(f"{up.url}/internal/metrics", timeout=30).json()
    values: list[float] = [
        sample["value"]
        for family in families.values()
        for sample in family["samples"]
        if sample["name"] == name and all(sample["labels"].get(key) == value for key, value in labels.items())
    ]
    return sum(values)


def outcomes(up: Up) -> Counter[str]:
    """The exchanges in the database by outcome."""
    with closing(sqlite3.connect(f"file:{up.data}/capture.db?mode=ro", uri=True)) as db:
        return Counter(dict(db.execute("select outcome, count(*) from exchanges group by outcome")))


class Stream:
    """A streamed request under way in a thread; `text` is all of it, None when it broke."""

    def __init__(self, client: httpx.Client, tokens: int) -> None:
        self.began, self.text = threading.Event(), ""
        self.broke = False
        self._thread = threading.Thread(target=self._read, args=(client, QUICK | {"max_tokens": tokens, "stream": True}))
        self._thread.start()

    def _read(self, client: httpx.Client, body: dict[str, Any]) -> None:
        try:
            with client.stream("POST", CHAT, json=body) as reply:
                for piece in reply.iter_text():
                    self.text += piece
                    if '"content":"' in self.text:
                        self.began.set()
        except httpx.HTTPError:
            self.broke = True
        self.began.set()

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_two_look_like_one(sim: SimHandle, tmp_path: Path) -> None:
    limits = {"rate_limit": {"enabled": True, "default_limit": 1000}}
    with running_up(tmp_path, "--backend", sim.url, "--workers", "2", config=limits) as up:
        assert sorted(workers(up)) == ["gateway-1", "gateway-2"]
        assert any(line.startswith("OpenAI base URL") and line.endswith("ready, 2 workers") for line in up.out)
        assert any("rate_limit.storage: memory:// counts in each of the 2 workers" in line for line in up.log)
        ids = set()
        with connections(up) as by_worker:
            for client in by_worker.values():
                for _ in range(20):
                    ids.add(client.post(CHAT, json=QUICK).raise_for_status().headers["x-request-id"])
        assert len(ids) == 40

        def told() -> bool:
            return metric(up, "llmtap_requests_total", outcome="ok") == 40 and outcomes(up)["ok"] == 40

        eventually(told, "not all of both is counted and captured")
        assert metric(up, "llmtap_e2e_request_latency_seconds_count") == 40
        with closing(sqlite3.connect(f"file:{up.data}/capture.db?mode=ro", uri=True)) as db:
            assert [n for (n,) in db.execute("select count(*) from exchanges group by worker")] == [20, 20]
        stats = httpx.get(f"{up.url}/stats").json()
        assert {worker["pid"] for worker in stats["workers"]} == set(workers(up).values())
        assert stats["models"][0]["requests"] == 40
        said = llmtap("status", cwd=tmp_path).stdout
        assert "gateway-1" in said and "gateway-2" in said and "2: 0 in flight in process" in said
        assert "llmtap_requests_total" in llmtap("metrics", up.url, cwd=tmp_path).stdout
        with connections(up) as by_worker:
            streams = [Stream(client, 60) for client in by_worker.values()]
            for stream in streams:
                assert stream.began.wait(30)
            eventually(lambda: httpx.get(f"{up.url}/stats").json()["in_flight"] == 2, "in flight is not that of both")
            assert up.stop() == 0  # drains both
            for stream in streams:
                stream.end()
        assert [stream.text.rstrip().endswith("data: [DONE]") for stream in streams] == [True, True]
        assert outcomes(up) == {"ok": 42}
        assert up.left() == []


def test_one_is_killed_under_load(sim: SimHandle, tmp_path: Path) -> None:
    with running_up(tmp_path, "--backend", sim.url, "--workers", "2") as up, ExitStack() as stack:
        by_worker = stack.enter_context(connections(up))
        for client in by_worker.values():
            for _ in range(10):
                client.post(CHAT, json=QUICK).raise_for_status()
        eventually(lambda: metric(up, "llmtap_requests_total") == 20, "not counted")
        name, killed = min(workers(up).items())
        more = [stack.enter_context(httpx.Client(base_url=up.url, timeout=60)) for _ in range(6)]
        pids = [client.get("/stats").json()["workers"][0]["pid"] for client in more]
        there = {pid: Stream(client, 80) for pid, client in by_worker.items()}
        streams = [*there.items(), *((pid, Stream(client, 80)) for pid, client in zip(pids, more, strict=True))]
        for _, stream in streams:
            assert stream.began.wait(30)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: not guard.group_alive(killed) or up.pids().get(name) != killed, "it was not killed")
        seen, ok = 0.0, 20
        restarted = False
        while not restarted:  # from the first moment, and while it is being started again
            httpx.post(up.url + CHAT, json=QUICK, timeout=30).raise_for_status()
            ok += 1
            now = metric(up, "llmtap_requests_total")
            assert now >= max(seen, 20), "a counter went down"
            seen = now
            restarted = up.pids().get(name, killed) != killed
        for pid, stream in streams:
            stream.end()
            whole = stream.text.rstrip().endswith("data: [DONE]")
            assert whole is (pid != killed), (pid, stream.text[-200:])
            ok += whole
        lost = sum(pid == killed for pid, _ in streams)
        with connections(up) as again:  # the new one takes its part
            assert killed not in again
            for client in again.values():
                client.post(CHAT, json=QUICK).raise_for_status()
                ok += 1
        eventually(lambda: metric(up, "llmtap_requests_total", outcome="ok") == ok, f"not {ok} counted")
        eventually(lambda: outcomes(up) == {"ok": ok, "lost": lost}, f"not {ok} captured and {lost} lost")
        assert metric(up, "llmtap_requests_running") == 0
        row = next(process for process in up.state["processes"] if process["name"] == name)
        assert row["restarts"] == 1
        assert up.stop() == 0


def test_keys_change_and_the_second_port_opens_in_each(sim: SimHandle, tmp_path: Path) -> None:
    port = free_port()
    keys = {name: sha256(f"sk-{name}".encode()).hexdigest() for name in ("old", "new")}

    def auth(name: str) -> dict[str, Any]:
        return {"auth": {"enabled": True, "keys": [{"name": name, "key_sha256": keys[name]}]}}

    config = {
        "server": {"port": 0, "workers": 2, "compat_port": port},
        "backends": [{"name": "a", "url": sim.url}],
        "routing": {"health_interval_s": 0.5},
        **auth("old"),
    }
    headers = {"authorization": "Bearer sk-old"}
    with running_up(tmp_path, config=config) as up, connections(up, headers) as by_worker:
        pids = set()

        def both() -> bool:
            found = httpx.get(f"http://127.0.0.1:{port}/stats", headers=headers).json()
            pids.add(found["workers"][0]["pid"])
            return pids == set(workers(up).values())

        eventually(both, "not both listen on the second port")
        file = tmp_path / "llmtap.yaml"
        changed = yaml.safe_load(file.read_text()) | auth("new")
        file.write_text(yaml.safe_dump(changed))
        for client in by_worker.values():
            eventually(lambda c=client: c.post(CHAT, json=QUICK).status_code == 401, "the old key still works")  # type: ignore[misc]
            reply = client.post(CHAT, json=QUICK, headers={"authorization": "Bearer sk-new"})
            assert reply.status_code == 200
        sim.kill()

        def refused() -> bool:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
            except httpx.ConnectError:
                return True
            return False

        eventually(refused, "the second port stays open without a backend")
        assert httpx.get(f"{up.url}/health").status_code == 200
