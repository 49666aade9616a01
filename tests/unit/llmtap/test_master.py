"""The gateway without mitmproxy's tools, as a process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmtap import master


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmtap.master", *arguments], capture_output=True, text=True, timeout=60)


def test_a_bad_configuration_is_one_line_and_status_1(tmp_path: Path) -> None:
    config = tmp_path / "llmtap.yaml"
    config.write_text("servr: {}\n")
    done = run("--config", str(config), "--confdir", str(tmp_path))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "llmtap.yaml:1: servr: no such key" in said and "Traceback" not in said


@pytest.mark.parametrize("running", [[], [False], [False, True]])
def test_a_line_once_the_port_is_open(capsys: pytest.CaptureFixture[str], running: list[bool]) -> None:
    server = SimpleNamespace(servers=[SimpleNamespace(is_running=one) for one in running])
    master.Listening(server).running()  # type: ignore[arg-type]
    assert capsys.readouterr().out == (f"{master.READY}\n" if any(running) else "")


def test_wrong_usage_is_status_2() -> None:
    assert run().returncode == 2


def test_uvloop_is_used_where_it_is() -> None:
    factory = master.loop_factory()
    assert factory is not None
    loop = factory()
    try:
        assert "uvloop" in type(loop).__mro__[1].__module__
    finally:
        loop.close()


def test_without_uvloop_it_is_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert master.loop_factory() is None
    with asyncio.Runner(loop_factory=master.loop_factory()) as runner:
        assert type(runner.get_loop()).__module__.startswith("asyncio")


async def test_full_collections_wait_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight, asked, collected = 100, 0, []
    before = gc.get_threshold()

    def busy() -> int:
        nonlocal asked
        asked += 1
        return in_flight

    monkeypatch.setattr(gc, "collect", lambda: collected.append(asked))
    task = asyncio.create_task(master.collect_when_idle(busy, every_s=0.001, patience=5))
    try:
        async with asyncio.timeout(10):
            while len(collected) < 2:
                await asyncio.sleep(0.001)
            assert collected[:2] == [5, 10]  # never idle: at last all the same
            in_flight, collected[:] = 0, []
            while len(collected) < 2:
                await asyncio.sleep(0.001)
        assert collected[1] == collected[0] + 1 and gc.get_threshold()[2] == 1_000_000
    finally:
        task.cancel()
        gc.set_threshold(*before)
