import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from llmtap.core import config_load
from llmtap_launcher import overview
from llmtap_launcher.overview import backends, duration, fetch, gather, sections
from llmtap_launcher.runtime import RunFolder, start_time
from llmtap_launcher.store.status import StatusFile, WriterStatus

STATE: dict[str, Any] = {
    "phase": "ready",
    "started_at": time.time() - 90,
    "launcher": {"pid": os.getpid(), "start": start_time(os.getpid())},
    "urls": {"gateway": "http://gw", "openai": "http://gw/v1", "stats": "http://gw/stats", "web": None},
    "backends": [
        {"name": "a", "url": "http://a", "model": "m"},
        {"name": "ext", "url": "http://ext", "model": None},
    ],
    "processes": [
        {"name": "a", "state": "starting", "error": "exited with status 1; starting again in 2 s"},
        {"name": "gateway", "state": "ready", "error": None},
    ],
}
STATS: dict[str, Any] = {
    "in_flight": 3,
    "waiting": 1,
    "capture_healthy": True,
    "backends": [
        {"name": "a", "url": "http://a", "state": "down", "reason": "refused", "in_flight": 0, "models": []},
        {"name": "ext", "url": "http://ext", "state": "up", "reason": None, "in_flight": 3, "models": ["x", "y"]},
    ],
}


def text(found: dict[str, Any]) -> str:
    return "\n".join("  ".join(row) for header, rows in sections(found) for row in ([list(header)] if header else []) + rows)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """URL -> what `fetch` finds there."""
    table: dict[str, Any] = {}

    async def fake(url: str) -> Any:
        return table.get(url)

    monkeypatch.setattr(overview, "fetch", fake)
    return table


async def test_everything_together(tmp_path: Path, answers: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.write(STATE)
    StatusFile(tmp_path).write(WriterStatus(lag_s=1.25, spool_bytes=2_000_000), now=True)
    (tmp_path / "capture.db").write_bytes(b"x" * 1500)
    (tmp_path / "capture.db-wal").write_bytes(b"x" * 500)
    answers["http://gw/stats"] = STATS
    found = await gather(config_load.load(None, {}, {"capture.dir": tmp_path}))
    assert found is not None
    assert found["database_bytes"] == 2000
    assert found["launcher"]["uptime_s"] >= 90
    assert found["writer"]["lag_s"] == 1.25
    assert found["gateway"] == STATS
    lines = text(found).splitlines()
    # minutes since this file was imported, and one and a half
    assert re.fullmatch(rf"launcher  ready, process {os.getpid()}, up \d+ min", lines[0])
    assert "openai  http://gw/v1" in lines
    assert "in flight  3" in lines
    assert "waiting  1" in lines
    assert "capture  ok" in lines
    assert "spool lag  1.2 s" in lines
    assert "spool size  2.0 MB" in lines
    assert f"database size  2.0 kB ({tmp_path}/capture.db)" in lines
    assert "a  down (refused)  starting (exited with status 1; starting again in 2 s)  0  http://a  m" in lines
    assert "ext  up  not ours  3  http://ext  x, y" in lines
    assert "gateway  ready" in lines


async def test_nothing_runs(tmp_path: Path, answers: dict[str, Any]) -> None:
    config = config_load.load(None, {}, {"capture.dir": tmp_path})
    assert await gather(config) is None
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.write({**STATE, "launcher": {"pid": os.getpid(), "start": 1}})  # of a launcher that is dead
    assert await gather(config) is None


async def test_a_gateway_without_the_launcher(tmp_path: Path, answers: dict[str, Any]) -> None:
    answers["http://127.0.0.1:8000/stats"] = {**STATS, "capture_healthy": None}
    found = await gather(config_load.load(None, {}, {"capture.dir": tmp_path}))
    assert found is not None
    assert found["launcher"] is None
    assert found["writer"] is None
    lines = text(found).splitlines()
    assert "launcher  none (the gateway was started by itself)" in lines
    assert "capture  off" in lines
    assert "spool lag  unknown (no writer)" in lines


async def test_a_launcher_whose_gateway_does_not_answer(tmp_path: Path, answers: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.write(STATE)
    StatusFile(tmp_path).write(WriterStatus(state="error", error="disk full"), now=True)
    found = await gather(config_load.load(None, {}, {"capture.dir": tmp_path}))
    assert found is not None
    lines = text(found).splitlines()
    assert "gateway  does not answer" in lines
    assert "writer  error: disk full" in lines
    assert [row["health"] for row in found["backends"]] == [None, None]


def test_backends_known_to_one_side_only() -> None:
    assert backends(None, None) == []
    assert [row["name"] for row in backends(None, STATS)] == ["a", "ext"]
    assert backends(STATE, None)[0]["models"] == ["m"]


async def test_fetch_takes_only_what_is_ours() -> None:
    import asyncio
    import json

    bodies = [{"backends": []}, {"other": 1}, [1]]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(bodies.pop(0)).encode() if bodies else b"no json"
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/stats"
        assert [await fetch(url) for _ in range(4)] == [{"backends": []}, None, None, None]
    assert await fetch(url) is None


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.4, 60, 3599, 3700, 90_000)] == ["0 s", "59 s", "1 min", "59 min", "1 h 1 min", "1 d 1 h"]


def test_workers_are_told_where_there_are_several() -> None:
    rows = [{"pid": 5, "in_flight": 1, "waiting": 0}, {"pid": 6, "in_flight": 2, "waiting": 0}]
    found: dict[str, Any] = {"launcher": None, "writer": None, "backends": [], "database_bytes": 0, "database": "d"}
    assert "workers  2: 1 in flight in process 5, 2 in flight in process 6" in text(
        found | {"gateway": STATS | {"workers": rows}}
    )
    assert "workers" not in text(found | {"gateway": STATS | {"workers": rows[:1]}})
