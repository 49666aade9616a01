"""The management API of a running `llmtap up`, through the gateway's port: engines, backends, requests, configuration, swaps."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llmtap_launcher import guard
from support.launcher import Up, environment, llmtap, running_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
]
ROOT = Path(__file__).parents[2]
QUIET: dict[str, Any] = {"datasette": {"enabled": False}, "routing": {"health_interval_s": 0.5}}


def sim(name: str, model: str, **launch: Any) -> dict[str, Any]:
    return {"name": name, "launch": {"engine": "sim", "model": model, **launch}}


def api(up: Up, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=f"{up.url}/api/v1", timeout=60, headers=headers, trust_env=False)


def ask(up: Up, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **more}
    return httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def backend(client: httpx.Client, name: str) -> dict[str, Any]:
    return dict(client.get(f"/backends/{name}").json())


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("empty"), config=QUIET) as up:
        yield up


def test_a_launcher_without_backends_says_how_to_start_one(empty: Up) -> None:
    assert any("no backend yet" in line and "/api/v1/inference/up" in line for line in empty.out)
    assert ask(empty, "m").status_code == 503


def test_the_commands_of_the_documentation(empty: Up) -> None:
    page = (ROOT / "docs" / "management.md").read_text("utf-8")
    commands = re.findall(r"^curl .*$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("http://127.0.0.1:8000", empty.url))
        answer = json.loads(
            subprocess.run([*words, "--noproxy", "*"], capture_output=True, text=True, check=True, timeout=60).stdout
        )
        assert "error" not in answer
    with api(empty) as client:
        assert client.post("/inference/down", json={"model": "sim-small"}).status_code == 200
        described = client.get(f"{empty.url}/api/openapi.json").json()["paths"]
    for path in re.findall(r"`(?:[A-Z]+ )+(/api/v1/[^`]*)`", page):
        assert path in described, path


def test_the_example_that_rates_a_reply(empty: Up) -> None:
    page = (ROOT / "docs" / "management.md").read_text("utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with api(empty) as client:
        assert client.post("/inference/up", json={"model": "sim-small", "engine": "sim"}).status_code == 200
        code = example.replace("http://127.0.0.1:8000", empty.url)
        env = environment({"no_proxy": "*"})
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
        assert ran.returncode == 0, ran.stderr
        request_id = ran.stdout.strip()
        listed = eventually(
            lambda: (found := client.get(f"/exchanges/{request_id}/ratings").json()["ratings"]) and len(found) == 2 and found,
            "the ratings are not stored",
        )
        assert {(row["name"], row["value"], row["corrected"]) for row in listed} == {
            ("thumb", 1.0, False),
            ("better", None, True),
        }
        with contextlib.closing(sqlite3.connect(empty.data / "capture.db")) as database:
            sql = "SELECT tags, metadata_json FROM exchanges WHERE uid = ?"
            eventually(
                lambda: (
                    [json.loads(cell or "null") for cell in database.execute(sql, (request_id,)).fetchone()]
                    == [["reviewed"], {"reviewer": "anna"}]
                ),
                "tags and metadata are not stored",
            )
        assert client.post("/inference/down", json={"model": "sim-small"}).status_code == 200


def test_up_is_ok_when_a_completion_works_and_down_leaves_nothing(empty: Up) -> None:
    with api(empty) as client:
        answer = client.post("/inference/up", json={"model": "org/m", "engine": "sim", "args": {"ttft-ms": 1}})
        assert answer.status_code == 200, answer.text
        assert ask(empty, "org/m").status_code == 200
        row = answer.json()["backend"]
        assert (row["name"], row["health"], row["process"], row["origin"]) == ("m", "up", "ready", "api")
        assert "m" in empty.pids()
        status = json.loads(llmtap("status", "--json", cwd=empty.data.parent).stdout)
        assert [(b["name"], b["health"], b["process"]) for b in status["backends"]] == [("m", "up", "ready")]
        assert client.post("/inference/down", json={"name": "m"}).json() == {"stopped": ["m"]}
    assert not guard.group_alive(row["pid"]) and "m" not in empty.pids()
    assert ask(empty, "org/m").status_code == 503


def test_an_engine_that_does_not_start_says_its_last_words(empty: Up) -> None:
    with api(empty) as client:
        answer = client.post("/inference/up", json={"model": "m", "engine": "sim", "args": {"no-such-flag": 1}})
        assert answer.status_code == 422
        assert any("--no-such-flag" in line for line in answer.json()["error"]["log"])
        assert client.get("/backends").json() == {"backends": []}


def test_a_server_that_runs_is_added_drained_and_removed(empty: Up) -> None:
    with running_sim(model="beside") as server, api(empty) as client:
        made = client.post("/backends", json={"name": "beside", "url": server.url})
        assert made.status_code == 201
        eventually(lambda: backend(client, "beside")["health"] == "up", "it is not found healthy")
        assert ask(empty, "beside").status_code == 200
        client.patch("/backends/beside", json={"draining": True})
        assert ask(empty, "beside").status_code == 503
        client.patch("/backends/beside", json={"draining": False, "max_concurrency": 7})
        assert ask(empty, "beside").status_code == 200 and backend(client, "beside")["max_concurrency"] == 7
        assert client.delete("/backends/beside").status_code == 204
        assert ask(empty, "beside").status_code == 503


def test_a_request_is_listed_and_cancelled(empty: Up) -> None:
    with api(empty) as client:
        client.post("/inference/up", json={"model": "slow", "engine": "sim", "args": {"tokens-per-second": 5}})
        answer: list[str] = []

        def stream() -> None:
            body = {"model": "slow", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2000, "stream": True}
            with (
                contextlib.suppress(httpx.RemoteProtocolError),  # it is not complete, and the client is to see that
                httpx.stream("POST", f"{empty.url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as reply,
            ):
                for piece in reply.iter_text():
                    answer.append(piece)

        asking = threading.Thread(target=stream)
        asking.start()
        listed = eventually(
            lambda: [r for r in client.get("/inflight").json()["requests"] if r["state"] == "replying"], "nothing is in flight"
        )
        assert [r["model"] for r in listed] == ["slow"]
        uid = listed[0]["id"]
        assert client.get(f"/inflight/{uid}").json()["backend"] == "slow"
        assert client.delete(f"/inflight/{uid}").json() == {"cancelled": uid}
        asking.join(10)
        assert "cancelled" in answer[-1] and client.delete(f"/inflight/{uid}").status_code == 404
        client.post("/inference/down", json={"model": "slow"})


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    backends = [
        sim("a", "m1", group="gpu"),
        sim("b", "m2", group="gpu", ttl_s=1),
        sim("c", "m3", ttl_s=0.5, args={"enable-sleep-mode": True}),
    ]
    with running_up(tmp_path_factory.mktemp("turns"), config={**QUIET, "backends": backends}) as up:
        yield up


def test_models_of_a_group_take_turns_while_clients_wait(turns: Up) -> None:
    up = turns
    with api(up) as client:
        listed = {card["id"] for card in httpx.get(f"{up.url}/v1/models").json()["data"]}
        assert listed == {"m1", "m2", "m3"}  # also the one that does not run
        assert [p for p in up.pids() if p in "ab"] == ["a"]
        for model, runs in (("m1", "a"), ("m2", "b"), ("m1", "a")):
            answer = ask(up, model)
            assert answer.status_code == 200 and answer.headers["x-llmtap-backend"] == runs
            assert [p for p in up.pids() if p in "ab"] == [runs]
        assert ask(up, "m2").status_code == 200
        eventually(lambda: "b" not in up.pids(), "the idle one runs on")
        row = backend(client, "b")
        assert (row["health"], row["process"]) == ("stopped", "stopped")
        shown = llmtap("status", cwd=up.data.parent).stdout
        assert "it starts when a request needs it" in shown
        client.post("/models/load", json={"model": "m2"})
        assert backend(client, "b")["process"] == "ready"


def test_many_clients_of_two_models_on_one_gpu_are_all_served(turns: Up) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda model=model: answers.append(ask(turns, model).status_code))  # type: ignore[misc]
        for model in ("m1", "m2") * 6
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert answers == [200] * 12


def test_a_model_that_sleeps_is_woken(turns: Up) -> None:
    pid = turns.pid("c")
    with api(turns) as client:
        eventually(lambda: backend(client, "c")["process"] == "asleep", "it does not sleep")
        assert ask(turns, "m3").status_code == 200
        assert turns.pid("c") == pid


def test_the_file_is_read_again_and_a_wrong_one_refused(tmp_path: Path) -> None:
    with running_up(tmp_path, config={**QUIET, "backends": [sim("a", "m1")]}) as up, api(up) as client:
        file = tmp_path / "llmtap.yaml"
        config = yaml.safe_load(file.read_text())
        # written aside and put in place at once: the file is also watched
        broken = tmp_path / "new"
        broken.write_text(yaml.safe_dump({**config, "rooting": {}}))
        broken.replace(file)
        answer = client.post("/reload")
        assert answer.status_code == 422 and "rooting" in answer.json()["error"]["message"]
        assert ask(up, "m1").status_code == 200
        config |= {"backends": [sim("c", "m3")], "capture": {**config["capture"], "segment_mb": 5}}
        broken.write_text(yaml.safe_dump(config))
        broken.replace(file)
        assert client.post("/reload").json() == {"reloaded": True, "waits_for_restart": ["capture"]}
        eventually(lambda: ask(up, "m3").status_code == 200, "the new backend does not serve")
        eventually(lambda: "a" not in up.pids(), "the old one runs on")
        assert ask(up, "m1").status_code == 404
        broken.write_text(yaml.safe_dump(config | {"management": {"enabled": False}}))
        broken.replace(file)
        assert client.post("/reload").status_code == 200
        for path in ("/api/v1/status", "/api/docs", "/api/openapi.json"):
            assert httpx.get(up.url + path).status_code == 404, path
        assert ask(up, "m3").status_code == 200


def test_it_may_be_used_by_the_keys_that_are_named(tmp_path: Path) -> None:
    keys = [{"name": "boss", "key": "sk-boss"}, {"name": "user", "key": "sk-user"}]
    config = {**QUIET, "auth": {"enabled": True, "keys": keys}, "management": {"keys": ["boss"]}, "backends": [sim("a", "m1")]}
    with running_up(tmp_path, config=config) as up:
        for key, read, write in (("sk-boss", 200, 200), ("sk-user", 200, 403), ("wrong", 401, 401)):
            with api(up, authorization=f"Bearer {key}") as client:
                assert client.get("/status").status_code == read
                assert client.post("/reload").status_code == write
        shown = llmtap("status", cwd=tmp_path).stdout  # over the launcher's own socket: needs no key
        assert "up" in shown and "m1" in shown and "does not answer" not in shown
        rated = httpx.post(
            f"{up.url}/api/v1/exchanges/nothing/ratings", json={"thumb": "up"}, headers={"authorization": "Bearer sk-user"}
        )
        assert (rated.status_code, rated.json()["error"]["code"]) == (404, "exchange_not_found")


def test_with_several_workers_all_of_them_know(tmp_path: Path) -> None:
    with running_up(tmp_path, "--workers", "2", config=QUIET) as up, api(up) as client:
        assert client.post("/inference/up", json={"model": "m", "engine": "sim"}).status_code == 200
        assert [ask(up, "m").status_code for _ in range(8)] == [200] * 8
        assert client.post("/inference/down", json={"model": "m"}).status_code == 200
        assert {ask(up, "m").status_code for _ in range(8)} == {503}
