import asyncio
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from llmtap_launcher.process import Process, ProcessFailed, Spec, Started, State, log_to_stderr, port_taken
from llmtap_launcher.restart import RestartPolicy

SERVER = "import signal; print('listening'); signal.pause()"


async def listening(started: Started) -> bool:
    return "listening" in started.lines


async def never(started: Started) -> bool:
    return False


def python(code: str) -> list[str]:
    return [sys.executable, "-uc", code]


class Watch:
    """Records what a process tells: lines, states, groups; `waits` takes the place of sleeping before a restart."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.states: list[State] = []
        self.groups: list[int] = []
        self.waits: list[float] = []

    def process(self, spec: Spec) -> Process:
        return Process(
            spec,
            log=lambda name, line: self.lines.append(f"{name} | {line}"),
            on_start=lambda pgid, name: self.groups.append(pgid),
            on_end=lambda pgid: self.groups.remove(pgid) if pgid in self.groups else None,
            on_change=lambda process: self.states.append(process.state),
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def watch() -> Watch:
    return Watch()


async def until(process: Process, state: State) -> None:
    async with asyncio.timeout(30):
        while process.state is not state:
            await asyncio.sleep(0.01)


async def test_life_of_a_process(watch: Watch) -> None:
    process = watch.process(Spec("a", python(SERVER), ready=listening))
    assert process.state is State.STOPPED
    assert process.pid is None
    await process.ready()
    assert process.pid is not None and watch.groups == [process.pid]
    assert "a | listening" in watch.lines
    await process.stop()
    assert watch.states == [State.STARTING, State.READY, State.STOPPING, State.STOPPED]
    assert watch.groups == []
    assert process.pid is None
    await process.ready()  # and again
    await process.stop()


async def test_everybody_may_ask_at_any_time(watch: Watch) -> None:
    process = watch.process(Spec("a", python(SERVER), ready=listening))
    await process.stop()
    await asyncio.gather(process.ready(), process.start(), process.ready())
    assert watch.states.count(State.STARTING) == 1
    await process.start()
    await asyncio.gather(process.stop(), process.stop(), process.start(), process.ready())
    assert process.state is State.READY  # who asks while it stops gets a new one
    await asyncio.gather(process.stop(), process.stop())
    assert process.state is State.STOPPED
    assert watch.groups == []


async def test_stop_while_starting(watch: Watch) -> None:
    process = watch.process(Spec("a", python("import signal; signal.pause()"), ready=never))
    waiting = asyncio.create_task(process.ready())
    await until(process, State.STARTING)
    await process.stop()
    with pytest.raises(ProcessFailed, match="a was stopped before it was ready"):
        await waiting
    assert watch.groups == []


async def test_stop_in_the_instant_of_the_start(watch: Watch) -> None:
    process = watch.process(Spec("a", python(SERVER), ready=listening))
    for turns in range(6):
        await process.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await process.stop()
        assert process.state is State.STOPPED
        assert process.pid is None
    for pid in watch.groups:
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)


async def test_restarts_after_an_exit(watch: Watch) -> None:
    process = watch.process(Spec("a", python(SERVER), ready=listening))
    await process.ready()
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(30):
        while process.state is not State.READY or process.pid == first:
            await asyncio.sleep(0.01)
    assert watch.waits == [1]
    assert process.restarts == 1
    assert "a | [llmtap] was ended by SIGKILL; starting again in 1 s" in watch.lines
    assert process.error is None
    await process.stop()


async def test_crash_loop_fails_with_the_last_lines(watch: Watch) -> None:
    process = watch.process(Spec("a", python("print('boom'); raise SystemExit(3)"), ready=never))
    with pytest.raises(
        ProcessFailed, match=r"a exited with status 3; it ended 5 times within 60 s and is not started again"
    ) as failed:
        await process.ready()
    assert failed.value.tail == ["boom"] * 5
    assert watch.waits == [1, 2, 4, 8]
    assert watch.lines[-5:] == ["a |   boom"] * 5
    assert process.state is State.FAILED
    with pytest.raises(ProcessFailed):  # asking again tries again
        await process.ready()
    assert len(watch.waits) == 8
    await process.stop()
    assert process.state is State.STOPPED


async def test_not_ready_in_time(watch: Watch) -> None:
    spec = Spec(
        "a", python("import signal; signal.pause()"), ready=never, startup_timeout_s=0.2, policy=RestartPolicy(startup_limit=1)
    )
    process = watch.process(spec)
    with pytest.raises(ProcessFailed, match=r"a was not ready within 0\.2 s; it ended once without getting ready"):
        await process.ready()
    assert watch.groups == []


async def test_without_a_probe_running_is_ready(watch: Watch) -> None:
    process = watch.process(Spec("a", python(SERVER)))
    await process.ready()
    assert process.state is State.READY
    await process.stop()


async def test_a_probe_that_cannot_connect_yet_says_no(watch: Watch) -> None:
    asked = 0

    async def probe(started: Started) -> bool:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise ConnectionRefusedError
        return True

    process = watch.process(Spec("a", python(SERVER), ready=probe, probe_interval_s=0.01))
    await process.ready()
    assert asked == 3
    await process.stop()


async def test_a_broken_probe_is_a_failure_not_a_wait(watch: Watch) -> None:
    async def probe(started: Started) -> bool:
        raise ZeroDivisionError("oops")

    process = watch.process(Spec("a", python(SERVER), ready=probe))
    with pytest.raises(ProcessFailed, match="a: ZeroDivisionError: oops"):
        await process.ready()
    assert watch.groups == []


async def test_no_such_command(watch: Watch) -> None:
    process = watch.process(Spec("vllm", ["llmtap-no-such-command", "serve"], missing_hint="run x"))
    with pytest.raises(ProcessFailed) as failed:
        await process.ready()
    assert str(failed.value) == "vllm: command not found: llmtap-no-such-command; run x"
    assert watch.waits == []


async def test_a_command_that_cannot_run(watch: Watch, tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    process = watch.process(Spec("a", [str(script)]))
    with pytest.raises(ProcessFailed, match=f"a: cannot run {script}: No such file or directory"):
        await process.ready()
    await process.stop()


async def test_port_taken_is_said_at_once(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port_taken("127.0.0.1", port)
        spec = Spec(
            "gateway", python(SERVER), ready=listening, listens=("127.0.0.1", port), port_hint="choose another with --port"
        )
        process = watch.process(spec)
        with pytest.raises(ProcessFailed) as failed:
            await process.ready()
        assert str(failed.value) == f"gateway: port {port} is in use; choose another with --port"
    assert not port_taken("127.0.0.1", port)
    assert not port_taken("no-such-host.invalid", port)
    await process.ready()
    await process.stop()


async def test_kill_hurries_a_stop(watch: Watch) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('listening')\nwhile True: signal.pause()"
    process = watch.process(Spec("a", python(stubborn), ready=listening, grace_s=600))
    process.kill()  # nothing runs: nothing happens
    await process.ready()
    stopping = asyncio.create_task(process.stop())
    await until(process, State.STOPPING)
    process.kill()
    async with asyncio.timeout(30):
        await stopping
    assert process.state is State.STOPPED


async def test_killed_after_the_grace(watch: Watch) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('listening')\nwhile True: signal.pause()"
    process = watch.process(Spec("a", python(stubborn), ready=listening))
    await process.ready()
    await process.stop(grace_s=0.1)
    assert watch.lines[-1] == "a | [llmtap] did not end within 0.1 s of SIGTERM and was killed"


async def test_settled_and_environment(watch: Watch) -> None:
    process = watch.process(Spec("a", python("import os, signal; print(os.environ['X']); signal.pause()"), env={"X": "17"}))
    assert await process.settled() is State.STOPPED
    await process.start()
    assert await process.settled() is State.READY
    async with asyncio.timeout(30):
        while not process.tail:
            await asyncio.sleep(0.01)
    assert list(process.tail) == ["17"]
    await process.stop()


async def test_tried_does_not_wait_for_restarts() -> None:
    async def forever(seconds: float) -> None:
        await asyncio.Event().wait()

    process = Process(Spec("a", python("raise SystemExit(1)"), ready=never), log=lambda name, line: None, sleep=forever)
    assert await process.tried() is State.STOPPED
    await process.start()
    assert await process.tried() is State.STARTING
    assert process.error == "exited with status 1; starting again in 1 s"
    await process.stop()


def test_default_log(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("a", "line")
    assert capsys.readouterr().err == "a | line\n"
