"""Watching the configuration file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from llmtap.core.config_watch import stamp, watch


def test_stamp(tmp_path: Path) -> None:
    file = tmp_path / "f"
    assert stamp(file) is None
    file.write_text("a")
    before = stamp(file)
    assert before is not None and stamp(file) == before
    other = tmp_path / "g"
    other.write_text("b")  # same size; replaced as editors do
    os.utime(other, ns=(before[0], before[0]))
    other.replace(file)
    assert stamp(file) != before


async def test_every_change_is_told_once_and_an_error_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "f"
    file.write_text("a")
    told = asyncio.Semaphore(0)
    count = 0

    def changed() -> None:
        nonlocal count
        count += 1
        told.release()
        if count == 1:
            raise RuntimeError("boom")

    task = asyncio.create_task(watch(file, changed, 0.001))
    await asyncio.sleep(0)  # it has looked once
    file.write_text("ab")
    await asyncio.wait_for(told.acquire(), 10)
    file.unlink()
    file.write_text("abc")
    await asyncio.wait_for(told.acquire(), 10)
    task.cancel()
    assert count == 2 and "could not be taken over" in caplog.text
