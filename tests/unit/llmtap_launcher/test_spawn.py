import asyncio
import os
import signal
import sys

import pytest

from llmtap_launcher import guard
from llmtap_launcher.spawn import MAX_LINE, Child, spawn

pytestmark = pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc")


async def run(code: str, **options: bool) -> tuple[Child, list[str], list[tuple[str, int]]]:
    lines: list[str] = []
    events: list[tuple[str, int]] = []
    child = Child(lines.append, lambda pid: events.append(("start", pid)), lambda pid: events.append(("end", pid)))
    await spawn(child, [sys.executable, "-uc", code], env=os.environ, **options)
    return child, lines, events


async def line_of(lines: list[str]) -> None:
    async with asyncio.timeout(20):
        while not lines:
            await asyncio.sleep(0.01)


async def test_lines_status_and_own_session() -> None:
    code = r"import os, sys; print('öut\r'); print('err', file=sys.stderr); print(os.getsid(0)); "
    code += "sys.stdout.write('no line feed'); sys.exit(7)"
    child, lines, events = await run(code)
    await child.exited
    assert await child.end(5)
    assert lines == ["öut", "err", str(child.pid), "no line feed"]
    assert child.status == 7
    assert events == [("start", child.pid), ("end", child.pid)]


async def test_a_line_without_end_is_cut() -> None:
    child, lines, _ = await run(f"import sys; sys.stdout.write('x' * {MAX_LINE * 2 + 10})")
    await child.exited
    await child.clear()
    assert "".join(lines) == "x" * (MAX_LINE * 2 + 10)
    assert max(map(len, lines)) <= MAX_LINE


async def test_bytes_that_are_no_utf8_are_shown_somehow() -> None:
    child, lines, _ = await run(r"import sys; sys.stdout.buffer.write(b'\xff\xfe ok\n')")
    await child.exited
    await child.clear()
    assert lines == ["�� ok"]


async def test_term_ends_it_gently() -> None:
    child, lines, _ = await run("import signal; print('up'); signal.pause()")
    await line_of(lines)
    assert await child.end(20)
    assert child.status == -signal.SIGTERM


async def test_kill_after_the_grace() -> None:
    child, lines, _ = await run(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\nwhile True: signal.pause()"
    )
    await line_of(lines)
    assert not await child.end(0.1)
    assert child.status == -signal.SIGKILL


async def test_descendants_do_not_outlive_the_leader() -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {stubborn!r}]).pid)"
    child, lines, events = await run(code)
    async with asyncio.timeout(20):
        await child.exited  # although the descendant still holds the output open
    await line_of(lines)
    await child.clear(grace_s=0.1)
    found = guard.stat(int(lines[0]))
    assert found is None or found.state == "Z"
    assert not guard.group_alive(child.pid)
    assert events[-1] == ("end", child.pid)


async def test_stdin_is_empty_or_stays_open() -> None:
    code = "import sys; print('up'); print(repr(sys.stdin.readline()))"
    child, lines, _ = await run(code)
    await child.exited
    await child.clear()
    assert lines == ["up", "''"]
    child, lines, _ = await run(code, stdin_pipe=True)
    await line_of(lines)
    assert not child.exited.done()
    await child.end(20)
    assert lines[:1] == ["up"]
    assert "''" not in lines


async def test_what_never_ran_is_ended_at_once() -> None:
    child = Child(lambda line: None)
    with pytest.raises(FileNotFoundError):
        await spawn(child, ["/no/such/command"], env={})
    assert await child.end(5)
    child.signal(signal.SIGTERM)
    assert child.status is None
