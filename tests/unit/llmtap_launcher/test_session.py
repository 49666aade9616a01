import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from llmtap.core import config_load
from llmtap.core.errors import LlmtapError
from llmtap_launcher import session
from llmtap_launcher.plan import Setup, decide
from llmtap_launcher.ports import free_ports
from llmtap_launcher.process import ProcessFailed, Spec, Started
from llmtap_launcher.restart import RestartPolicy
from llmtap_launcher.runtime import RunFolder
from llmtap_launcher.session import Session
from llmtap_launcher.supervisor import Plan

WAITS = [sys.executable, "-uc", "import signal; print('up'); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-uc",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\nwhile True: signal.pause()",
]
TOKEN_LINE = "Web server listening at http://127.0.0.1:1/?token=abc"


async def up(started: Started) -> bool:
    return "up" in started.lines


async def never(started: Started) -> bool:
    return False


class Desk:
    """A Session over a plan of trivial children, and what it said."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp_path, self._patch = tmp_path, monkeypatch
        self.said: list[str] = []
        self.log: list[str] = []
        self.overrides: dict[str, object] = {"capture.dir": tmp_path, "server.port": free_ports(1)[0]}

    def setup(self) -> Setup:
        return decide(config_load.load(None, {}, self.overrides))

    def session(self, plan: Plan) -> Session:
        self._patch.setattr(session, "make_plan", lambda setup, folder, run, env: plan)
        return Session(
            self.setup(), str(self.tmp_path), say=self.said.append, log=lambda name, line: self.log.append(f"{name} | {line}")
        )

    def plan(self, gateway: Spec, backends: tuple[Spec, ...] = (), slow: frozenset[str] = frozenset()) -> Plan:
        rows = [{"name": spec.name, "url": "http://b", "model": "m"} for spec in backends]
        facts = {"urls": {"openai": "http://gw/v1", "gateway": "http://gw"}, "data": str(self.tmp_path), "backends": rows}
        return Plan((gateway,), backends=backends, slow=slow, facts=facts)

    async def until(self, words: str) -> None:
        async with asyncio.timeout(30):
            while not any(words in line for line in self.said):
                await asyncio.sleep(0.01)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


@pytest.mark.parametrize("number", session.STOP_SIGNALS)
async def test_table_then_signal_then_stop(desk: Desk, capsys: pytest.CaptureFixture[str], number: int) -> None:
    plan = desk.plan(Spec("gateway", WAITS, ready=up), (Spec("engine", WAITS, ready=never),), frozenset({"engine"}))
    running = asyncio.create_task(desk.session(plan).run())
    await desk.until("Ctrl-C stops everything")
    assert "OpenAI base URL  http://gw/v1  ready" in capsys.readouterr().out
    assert f"\ndata folder: {desk.tmp_path}" in desk.said
    assert any(line.startswith("try: curl -s http://gw/v1/chat/completions") for line in desk.said)
    assert not any("no backend yet" in line for line in desk.said)
    assert RunFolder(desk.tmp_path).running() is not None
    os.kill(os.getpid(), number)
    await running
    assert desk.said[-2:] == ["stopping; once more to stop at once", "stopped"]
    assert RunFolder(desk.tmp_path).read() is None


async def test_without_a_backend_it_says_how_to_start_one(desk: Desk) -> None:
    running = asyncio.create_task(desk.session(desk.plan(Spec("gateway", WAITS, ready=up))).run())
    await desk.until("Ctrl-C stops everything")
    assert any(line.startswith("no backend yet; start one: curl -s http://gw/api/v1/inference/up") for line in desk.said)
    assert not any(line.startswith("try:") for line in desk.said)
    os.kill(os.getpid(), signal.SIGTERM)
    await running


async def test_a_second_signal_stops_at_once(desk: Desk) -> None:
    running = asyncio.create_task(desk.session(desk.plan(Spec("gateway", STUBBORN, ready=up, grace_s=600))).run())
    await desk.until("Ctrl-C stops everything")
    os.kill(os.getpid(), signal.SIGINT)
    await desk.until("once more")
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(30):
        await running
    assert desk.said[-1] == "stopped"


async def test_a_signal_during_the_start(desk: Desk) -> None:
    gateway = Spec("gateway", WAITS, ready=never, startup_timeout_s=600)
    running = asyncio.create_task(desk.session(desk.plan(gateway)).run())
    async with asyncio.timeout(30):
        while "gateway | up" not in desk.log:
            await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(30):
        await running
    assert desk.said == ["stopping; once more to stop at once", "stopped"]


async def test_the_gateway_does_not_start(desk: Desk) -> None:
    argv = [sys.executable, "-c", "print('boom'); raise SystemExit(1)"]
    gateway = Spec("gateway", argv, ready=never, policy=RestartPolicy(startup_limit=1))
    with pytest.raises(ProcessFailed, match="gateway exited with status 1"):
        await desk.session(desk.plan(gateway)).run()
    assert "gateway |   boom" in desk.log
    assert desk.said == []
    assert RunFolder(desk.tmp_path).read() is None


async def test_port_taken_is_said_before_anything_starts(desk: Desk) -> None:
    started = Spec("gateway", WAITS, ready=up)
    with socket.create_server(("127.0.0.1", 0)) as held:
        desk.overrides["server.port"] = port = held.getsockname()[1]
        with pytest.raises(LlmtapError, match=f"^port {port} is in use; choose another with --port$"):
            await desk.session(desk.plan(started)).run()
    assert desk.log == []


async def test_slow_backends_are_announced_when_they_get_there(desk: Desk, tmp_path: Path) -> None:
    flag = tmp_path / "loaded"

    async def loaded(started: Started) -> bool:
        return flag.exists()

    slow = Spec("big", WAITS, ready=loaded, startup_timeout_s=600, probe_interval_s=0.01)
    plan = desk.plan(Spec("gateway", WAITS, ready=up), (slow,), frozenset({"big"}))
    running = asyncio.create_task(desk.session(plan).run())
    await desk.until("backend big is loading its model")
    flag.touch()
    await desk.until("big is ready after 0 s")
    os.kill(os.getpid(), signal.SIGTERM)
    await running


async def test_backends_that_are_not_ours_are_looked_at(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_ports(1)[0]
    desk.overrides["backends"] = [{"name": "ext", "url": f"http://127.0.0.1:{port}"}]
    plan = desk.plan(Spec("gateway", WAITS, ready=up))
    plan = Plan(plan.gateways, facts={**plan.facts, "backends": [{"name": "ext", "url": "http://ext", "model": None}]})
    running = asyncio.create_task(desk.session(plan).run())
    await desk.until("Ctrl-C stops everything")
    assert "Backend ext      http://ext    down (" in capsys.readouterr().out
    os.kill(os.getpid(), signal.SIGTERM)
    await running


async def test_mitmwebs_address_is_shown_and_kept_for_status(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.overrides["server.web"] = True
    argv = [sys.executable, "-uc", f"import signal; print({TOKEN_LINE!r}); print('up'); signal.pause()"]
    running = asyncio.create_task(desk.session(desk.plan(Spec("gateway", argv, ready=up))).run())
    await desk.until("Ctrl-C stops everything")
    assert "Web UI           http://127.0.0.1:1/?token=abc" in capsys.readouterr().out
    state = RunFolder(desk.tmp_path).read()
    assert state is not None
    assert state["urls"]["web"] == "http://127.0.0.1:1/?token=abc"
    os.kill(os.getpid(), signal.SIGTERM)
    await running


async def test_leftovers_of_an_earlier_run_are_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunFolder, "clear_leftovers", lambda self: 3)
    running = asyncio.create_task(desk.session(desk.plan(Spec("gateway", WAITS, ready=up))).run())
    await desk.until("Ctrl-C stops everything")
    assert desk.log[0] == "llmtap | ended 3 processes that an earlier run had left behind"
    os.kill(os.getpid(), signal.SIGTERM)
    await running
