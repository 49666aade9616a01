"""Another configuration without a restart: what runs ends under the old one, listeners follow, a wrong one changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.certificate import subject, write_certificate
from support.gateway import SCRIPT, Gateway, free_port, running_gateway, wait_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = pytest.mark.integration
CHAT = "/v1/chat/completions"


def chat(prompt: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "sim-small", "messages": [{"role": "user", "content": prompt}], **more}


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def rewrite(gateway: Gateway, change: Callable[[dict[str, Any]], None]) -> None:
    """The configuration file with `change` made to it."""
    path = gateway.data / "llmtap.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def said(gateway: Gateway, words: str, times: int = 1) -> None:
    eventually(lambda: "".join(gateway.output).count(words) >= times, f"it never says {words!r}: {gateway.output}")


def hup(gateway: Gateway) -> None:
    before = "".join(gateway.output).count("configuration was loaded again")
    gateway.process.send_signal(signal.SIGHUP)
    said(gateway, "configuration was loaded again", before + 1)


@contextlib.contextmanager
def loud(data: Path, config: dict[str, Any], **how: Any) -> Any:
    """A gateway whose log is heard."""
    with running_gateway(data, config, options=("--set", "termlog_verbosity=info"), quiet=False, **how) as gateway:
        yield gateway


def test_backends_come_and_go_and_streams_end_where_they_began(tmp_path: Path) -> None:
    with running_sim(tokens_per_second=50) as a, running_sim() as b:
        config = {"backends": [{"name": "a", "url": a.url}], "routing": {"health_interval_s": 0.2}}
        with loud(tmp_path, config, master=True) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as client:
            wait_up(gateway)
            client.post(CHAT, json=chat())
            body = chat("[[sim:tokens=60]] a story", stream=True, max_tokens=60)
            with client.stream("POST", CHAT, json=body) as running:
                pieces = running.iter_raw()
                assert b"data: " in next(pieces)

                def other(config: dict[str, Any]) -> None:
                    config["backends"] = [{"name": "b", "url": b.url}]

                rewrite(gateway, other)
                hup(gateway)
                ready = f"{gateway.url}/health/ready"
                eventually(lambda: httpx.get(ready).json()["backends"] == {"b": "up"}, "the new backend is not up")
                assert httpx.post(f"{gateway.url}{CHAT}", json=chat()).headers["x-llmtap-backend"] == "b"
                rest = b"".join(pieces)
                assert rest.endswith(b"data: [DONE]\n\n")
            _, end = gateway.exchange(running.headers["x-request-id"])
            assert end["outcome"] == "ok" and end["backend"] == "a"
            assert gateway.metric("llmtap_requests_total", backend="a") == 2 and gateway.metric("llmtap_requests_total") == 3
            assert gateway.metric("llmtap_requests_running") == 0
            assert gateway.metric("llmtap_backend_up", backend="a") == 0 and gateway.metric("llmtap_backend_up", backend="b") == 1
            assert len(list((gateway.data / "spool").glob("*.jsonl"))) == 1, "the same capture log goes on"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"server": {"tls_cert": "nowhere.pem"}}, "server.tls_cert: nowhere.pem cannot be read"),
        ({"capture": {"dir": "/proc/nowhere"}}, "capture.dir"),
    ],
)
def test_a_wrong_one_is_told_and_nothing_changes(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with running_sim() as sim:
        config = {"backends": [{"name": "a", "url": sim.url}]}
        env = {"LLMTAP_CAPTURE__DIR": "", "LLMTAP_LOGGING__REQUEST_LOG": "false"}
        config["capture"] = {"dir": str(tmp_path)}  # type: ignore[assignment]
        with loud(tmp_path, config, master=True, env=env) as gateway:
            wait_up(gateway)

            def break_it(config: dict[str, Any]) -> None:
                config.update({k: {**config.get(k, {}), **v} if isinstance(v, dict) else v for k, v in change.items()})

            rewrite(gateway, break_it)
            gateway.process.send_signal(signal.SIGHUP)
            said(gateway, "the configuration stays as it was")
            output = "".join(gateway.output)
            assert words in output and "Traceback" not in output
            reply = httpx.post(f"{gateway.url}{CHAT}", json=chat())
            assert reply.status_code == 200
            assert gateway.exchange(reply.headers["x-request-id"])[1]["outcome"] == "ok"


def test_listeners_follow(tmp_path: Path) -> None:
    old_compat, new_compat, new_port, taken = free_port(), free_port(), free_port(), free_port()
    with running_sim() as sim:
        config = {
            "backends": [{"name": "a", "url": sim.url}],
            "server": {"compat_port": old_compat},
            "routing": {"health_interval_s": 0.2},
        }
        with loud(tmp_path, config, master=True) as gateway:
            eventually(lambda: answers(old_compat), "the compat port does not open")
            with httpx.Client(base_url=gateway.url) as kept, socket.create_server(("127.0.0.1", taken)):
                kept.get("/health")
                rewrite(gateway, lambda config: config["server"].update(port=taken))
                gateway.process.send_signal(signal.SIGHUP)
                said(gateway, f"cannot listen on 127.0.0.1:{taken}")
                assert kept.get("/health").status_code == 200 and answers(gateway.port)
                rewrite(gateway, lambda config: config["server"].update(port=new_port, compat_port=new_compat, max_body_mb=1))
                hup(gateway)
                eventually(lambda: answers(new_port) and answers(new_compat), "the new ports do not open")
                eventually(lambda: not answers(gateway.port) and not answers(old_compat), "the old ports stay open")
                assert kept.get("/health").status_code == 200, "a connection goes on"
                large = kept.post(CHAT, content=b"x" * (1 << 20) + b"y", headers={"content-type": "application/json"})
                assert large.status_code == 413
                rewrite(gateway, lambda config: config["server"].update(compat_port=None))
                hup(gateway)
                eventually(lambda: not answers(new_compat), "it stays open")


def test_a_new_certificate_is_shown_to_new_clients(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path / "tls")
    config = {"server": {"tls_cert": str(cert), "tls_key": str(key)}}
    with loud(tmp_path / "data", config, master=True, ready=False) as gateway:
        eventually(lambda: answers(gateway.port), "the port does not open")
        first = subject(gateway.port, tmp_path / "tls")
        write_certificate(tmp_path / "tls", "other.example")
        hup(gateway)
        second = subject(gateway.port, tmp_path / "tls", "other.example")
        assert first != second
        rewrite(gateway, lambda config: config.update(server={"port": gateway.port}))
        hup(gateway)
        assert httpx.get(f"{gateway.url}/health").status_code == 200, "plain again"


def test_the_capture_folder_may_move(tmp_path: Path) -> None:
    with running_sim(tokens_per_second=50) as sim:
        config = {"backends": [{"name": "a", "url": sim.url}], "capture": {"dir": str(tmp_path / "one")}}
        env = {"LLMTAP_CAPTURE__DIR": ""}
        with loud(tmp_path / "data", config, master=True, env=env) as gateway:
            wait_up(gateway)
            with httpx.stream("POST", f"{gateway.url}{CHAT}", json=chat("[[sim:tokens=40]] x", stream=True)) as running:
                pieces = running.iter_raw()
                next(pieces)
                rewrite(gateway, lambda config: config.update(capture={"dir": str(tmp_path / "two")}))
                hup(gateway)
                httpx.post(f"{gateway.url}{CHAT}", json=chat())
                for _ in pieces:
                    pass
            one, two = (Gateway(gateway.process, 0, tmp_path / name).records() for name in ("one", "two"))
            assert [r["t"] for r in one] == ["begin", "end"] == [r["t"] for r in two]
            assert one[0]["uid"] == running.headers["x-request-id"] != two[0]["uid"]


@pytest.mark.parametrize("stock", [False, True])
def test_touching_the_script_loads_it_again(tmp_path: Path, stock: bool) -> None:
    script = tmp_path / "touched.py"
    script.write_text(SCRIPT.read_text())
    with running_sim() as sim:
        config: dict[str, Any] = {"backends": [{"name": "a", "url": sim.url}], "server": {"max_body_mb": 2}}
        mode = f"reverse:{sim.url}" if stock else None
        env = {"PYTHONPATH": str(SCRIPT.parent)}
        with loud(tmp_path / "data", config, script=script, env=env, mode=mode) as gateway:
            wait_up(gateway)
            body = b"x" * (1 << 20) + b"y"
            headers = {"content-type": "application/json"}
            assert httpx.post(f"{gateway.url}{CHAT}", content=body, headers=headers).status_code == 400
            rewrite(gateway, lambda config: config["server"].update(max_body_mb=1))
            os.utime(script, (2_000_000_000, 2_000_000_000))
            said(gateway, "the configuration was loaded again")
            assert httpx.post(f"{gateway.url}{CHAT}", content=body, headers=headers).status_code == 413
            assert httpx.post(f"{gateway.url}{CHAT}", json=chat()).status_code == 200


async def test_under_load_nothing_is_lost(tmp_path: Path) -> None:
    """A hundred streams while the configuration is loaded again ten times: every one whole, every one captured once."""
    from support.thread import in_thread

    async with in_thread(running_sim(tokens_per_second=200)) as sim:
        config = {"backends": [{"name": "a", "url": sim.url}]}
        async with (
            in_thread(loud(tmp_path, config, master=True)) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=httpx.Limits(max_connections=100)) as client,
        ):
            await asyncio.to_thread(wait_up, gateway)

            async def one(n: int) -> bytes:
                return (await client.post(CHAT, json=chat(f"[[sim:tokens=40]] {n}", stream=True))).content

            streams = [asyncio.create_task(one(n)) for n in range(100)]
            for n in range(10):
                rewrite(gateway, lambda config, n=n: config.update(timeouts={"idle_s": 100 + n}))  # type: ignore[misc]
                await asyncio.to_thread(hup, gateway)
            for stream in streams:
                assert (await stream).endswith(b"data: [DONE]\n\n")
            records = await asyncio.to_thread(gateway.records)
            assert sorted(r["t"] for r in records) == ["begin"] * 100 + ["end"] * 100
            assert {r["outcome"] for r in records if r["t"] == "end"} == {"ok"}
            assert await asyncio.to_thread(gateway.metric, "llmtap_requests_total", outcome="ok") == 100
            assert await asyncio.to_thread(gateway.metric, "llmtap_requests_running") == 0
