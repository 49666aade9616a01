import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from llmtap_launcher.guard import RUN_VARIABLE
from llmtap_launcher.process import Process, ProcessFailed, Spec, Started, State
from llmtap_launcher.restart import RestartPolicy
from llmtap_launcher.runtime import RunFolder
from llmtap_launcher.supervisor import Plan, Supervisor

#: says when it is up and, in a file that all share, when it goes
CHILD = """
import signal, sys, time
name, log, stubborn = sys.argv[1], sys.argv[2], sys.argv[3] == "stubborn"
def gone(number, frame):
    if stubborn:
        return
    with open(log, "a") as file:
        file.write(f"{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, gone)
print("up", flush=True)
while True:
    signal.pause()
"""


async def up(started: Started) -> bool:
    return "up" in started.lines


async def never(started: Started) -> bool:
    return False


class Bench:
    """Specs of trivial children, and what was seen of them."""

    def __init__(self, tmp_path: Path) -> None:
        self.file = tmp_path / "order.txt"
        self.run = str(tmp_path)  # of this test alone: a guard ends whatever bears its mark
        self.folder = RunFolder(tmp_path / "data")
        self.folder.path.mkdir(parents=True)
        self.lines: list[str] = []
        self.changes: list[tuple[str, State]] = []

    def spec(self, name: str, *, stubborn: bool = False, grace_s: float = 30.0) -> Spec:
        argv = [sys.executable, "-c", CHILD, name, str(self.file), "stubborn" if stubborn else ""]
        return Spec(name, argv, env={**os.environ, RUN_VARIABLE: self.run}, ready=up, grace_s=grace_s)

    def broken(self, name: str) -> Spec:
        argv = [sys.executable, "-c", "print('boom'); raise SystemExit(2)"]
        return Spec(name, argv, ready=never, policy=RestartPolicy(startup_limit=1))

    def supervisor(self, plan: Plan) -> Supervisor:
        def changed(process: Process) -> None:
            self.changes.append((process.name, process.state))

        log = lambda name, line: self.lines.append(f"{name} | {line}")  # noqa: E731
        return Supervisor(plan, self.folder, self.run, log=log, pid=os.getpid(), on_change=changed)

    def stopped(self) -> list[str]:
        return self.file.read_text().split()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def whole(bench: Bench) -> Plan:
    return Plan(
        (bench.spec("gateway"),),
        backends=(bench.spec("a"), bench.spec("b")),
        writer=bench.spec("writer"),
        datasette=bench.spec("datasette"),
        facts={"data": "/d"},
    )


async def test_starts_in_order_and_stops_in_reverse(bench: Bench) -> None:
    supervisor = bench.supervisor(whole(bench))
    await supervisor.start()
    ready = [name for name, state in bench.changes if state is State.READY]
    assert set(ready[:3]) == {"a", "b", "writer"}
    assert ready[3:] == ["gateway", "datasette"]
    state = bench.folder.read()
    assert state is not None
    assert state["phase"] == "ready"
    assert state["data"] == "/d"
    assert state["launcher"]["pid"] == os.getpid()
    assert {process["name"]: process["state"] for process in state["processes"]} == dict.fromkeys(
        ["a", "b", "writer", "gateway", "datasette"], "ready"
    )
    assert supervisor.failures() == []
    pids = [process.pid for process in supervisor.processes]
    guard = supervisor.guard.pid
    await supervisor.stop()
    assert bench.stopped()[:3] == ["datasette", "gateway", "writer"]
    assert sorted(bench.stopped()[3:]) == ["a", "b"]
    for pid in [*pids, guard]:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_only_the_gateway_is_essential(bench: Bench) -> None:
    plan = Plan((bench.spec("gateway"),), backends=(bench.broken("a"), bench.spec("b")), writer=bench.broken("writer"))
    supervisor = bench.supervisor(plan)
    await supervisor.start()
    assert [str(process.state) for process in supervisor.processes] == ["failed", "ready", "failed", "ready"]
    assert supervisor.failures()[0] == "a exited with status 2; it ended once without getting ready and is not started again"
    await supervisor.stop()


async def test_without_the_gateway_nothing_runs(bench: Bench) -> None:
    plan = Plan((bench.broken("gateway"),), backends=(bench.spec("a"),), writer=bench.spec("writer"), datasette=bench.spec("d"))
    supervisor = bench.supervisor(plan)
    with pytest.raises(ProcessFailed, match="gateway exited with status 2") as failed:
        await supervisor.start()
    assert failed.value.tail == ["boom"]
    assert [str(process.state) for process in supervisor.processes] == ["stopped"] * 4
    assert bench.stopped() == ["writer", "a"]  # Datasette was not even started
    assert supervisor.guard.pid is None


async def test_several_gateways_start_and_drain_together(bench: Bench) -> None:
    names = ["gateway-1", "gateway-2", "gateway-3"]
    plan = Plan(tuple(bench.spec(name) for name in names), writer=bench.spec("writer"))
    supervisor = bench.supervisor(plan)
    await supervisor.start()
    assert {process.name: str(process.state) for process in supervisor.gateways} == dict.fromkeys(names, "ready")
    supervisor.gateways[1].kill()
    async with asyncio.timeout(30):
        while supervisor.gateways[1].restarts == 0 or supervisor.gateways[1].state is not State.READY:
            await asyncio.sleep(0.01)
    assert [process.restarts for process in supervisor.gateways] == [0, 1, 0]
    await supervisor.stop()
    stopping = [name for name, state in bench.changes if state is State.STOPPING]
    assert stopping == [*names, "writer"]
    assert sorted(bench.stopped()[:3]) == names and bench.stopped()[3:] == ["writer"]


async def test_a_worker_that_does_not_start_ends_the_start(bench: Bench) -> None:
    supervisor = bench.supervisor(Plan((bench.spec("gateway-1"), bench.broken("gateway-2"))))
    with pytest.raises(ProcessFailed, match="gateway-2 exited with status 2"):
        await supervisor.start()
    assert [str(process.state) for process in supervisor.processes] == ["stopped"] * 2


async def test_a_writer_that_just_died_takes_its_last_pass_before_the_end(bench: Bench) -> None:
    supervisor = bench.supervisor(whole(bench))
    await supervisor.start()
    writer = supervisor.writer
    assert writer is not None and writer.pid is not None
    first = writer.pid
    os.kill(first, signal.SIGKILL)
    while writer.state is State.READY:
        await asyncio.sleep(0.01)
    await supervisor.stop()
    assert "writer" in bench.stopped(), "it was not started again for what is left in the spool"


async def test_slow_engines_are_not_waited_for(bench: Bench) -> None:
    slow = Spec("slow", bench.spec("slow").argv, ready=never, startup_timeout_s=600)
    supervisor = bench.supervisor(Plan((bench.spec("gateway"),), backends=(slow,), slow=frozenset({"slow"})))
    await supervisor.start()
    assert supervisor.backends[0].state is State.STARTING
    await supervisor.stop()
    assert supervisor.backends[0].state is State.STOPPED


async def test_a_backend_that_keeps_failing_does_not_hold_up_the_rest(bench: Bench) -> None:
    failing = Spec("a", [sys.executable, "-c", "raise SystemExit(2)"], ready=never, policy=RestartPolicy(first_s=600, max_s=600))
    supervisor = bench.supervisor(Plan((bench.spec("gateway"),), backends=(failing,)))
    async with asyncio.timeout(20):
        await supervisor.start()
    assert supervisor.backends[0].error == "exited with status 2; starting again in 600 s"
    await supervisor.stop()


async def test_a_crash_loop_leaves_the_others_running(bench: Bench) -> None:
    crashing = Spec("a", bench.spec("a").argv, ready=up, policy=RestartPolicy(first_s=0.01, crash_limit=2))
    supervisor = bench.supervisor(Plan((bench.spec("gateway"),), backends=(crashing,)))
    await supervisor.start()
    backend = supervisor.backends[0]
    async with asyncio.timeout(30):
        while backend.state is not State.FAILED:
            backend.kill()
            await asyncio.sleep(0.01)
    assert supervisor.gateways[0].state is State.READY
    assert "ended 2 times within 60 s" in supervisor.failures()[0]
    state = bench.folder.read()
    assert state is not None
    assert "ended 2 times" in state["processes"][0]["error"]
    await supervisor.stop()


async def test_hurried_ends_what_will_not_go(bench: Bench) -> None:
    plan = Plan((bench.spec("gateway", stubborn=True, grace_s=600),), backends=(bench.spec("a", stubborn=True, grace_s=600),))
    supervisor = bench.supervisor(plan)
    await supervisor.start()
    stopping = asyncio.create_task(supervisor.stop())
    hurrying = asyncio.create_task(supervisor.hurried())
    async with asyncio.timeout(30):
        await stopping
    hurrying.cancel()
    assert [str(process.state) for process in supervisor.processes] == ["stopped", "stopped"]


async def test_a_start_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    slow = Spec("gateway", bench.spec("gateway").argv, ready=never, startup_timeout_s=600)
    supervisor = bench.supervisor(Plan((slow,), backends=(bench.spec("a"),)))
    starting = asyncio.create_task(supervisor.start())
    async with asyncio.timeout(30):
        while supervisor.gateways[0].pid is None:
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [str(process.state) for process in supervisor.processes] == ["stopped", "stopped"]
    assert supervisor.guard.pid is None
