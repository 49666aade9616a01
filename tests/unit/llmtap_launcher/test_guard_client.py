import asyncio
import os
import secrets
import signal
import sys

import pytest

from llmtap_launcher import guard
from llmtap_launcher.guard_client import Guard

pytestmark = pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc")


async def sleeper() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()", start_new_session=True)


async def until(condition: object, timeout_s: float = 20.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_is_announced_ends_with_it() -> None:
    watcher = Guard(secrets.token_hex(8))
    await watcher.start()
    kept, gone = await sleeper(), await sleeper()
    watcher.add(kept.pid, "kept")
    watcher.add(gone.pid, "gone")
    watcher.remove(gone.pid)
    watcher.remove(gone.pid)  # twice is once
    await watcher.close()
    assert await kept.wait() == -signal.SIGTERM
    assert gone.returncode is None
    gone.kill()
    await gone.wait()
    assert watcher.pid is None


async def test_is_replaced_when_it_dies_and_the_next_one_knows() -> None:
    said: list[str] = []
    watcher = Guard(secrets.token_hex(8), log=lambda name, line: said.append(f"{name} {line}"))
    await watcher.start()
    first = watcher.pid
    assert first is not None
    process = await sleeper()
    watcher.add(process.pid, "x")
    os.kill(first, signal.SIGKILL)
    await until(lambda: watcher.pid not in (None, first))
    assert said == ["llmtap the guard process ended; starting another"]
    await watcher.close()
    assert await process.wait() == -signal.SIGTERM


async def test_telling_a_dead_guard_is_no_error() -> None:
    watcher = Guard(secrets.token_hex(8), log=lambda name, line: None)
    await watcher.start()
    first = watcher.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    process = await sleeper()
    for _ in range(10):
        watcher.add(process.pid, "x")
    await until(lambda: watcher.pid not in (None, first))
    await watcher.close()
    assert await process.wait() == -signal.SIGTERM


async def test_close_before_start_and_twice() -> None:
    watcher = Guard(secrets.token_hex(8))
    await watcher.close()
    await watcher.start()
    await watcher.close()
    await watcher.close()
