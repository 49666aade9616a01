"""The launcher's end of the line to its gateways."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llmtap_launcher.gateway_link import GatewayLink, Refused, listen_private


class PlayedGateway:
    """Connects, keeps what it is asked, answers as told."""

    def __init__(self, path: Path, answer: dict[str, Any] | None) -> None:
        self.path, self.answer = path, answer
        self.heard: list[dict[str, Any]] = []
        self.heard_one = asyncio.Event()

    async def run(self) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        while line := await self.reader.readline():
            message = json.loads(line)
            self.heard.append(message)
            self.heard_one.set()
            if self.answer is not None:
                self.writer.write(json.dumps({"id": message["id"], **self.answer}).encode() + b"\n")
        self.writer.close()


async def test_a_question_goes_to_every_gateway(tmp_path: Path) -> None:
    link = GatewayLink()
    await link.start(tmp_path / "s")
    gateways = [PlayedGateway(tmp_path / "s", {"value": n}) for n in (1, 2)]
    tasks = [asyncio.create_task(gateway.run()) for gateway in gateways]
    for gateway in gateways:
        await asyncio.wait_for(gateway.heard_one.wait(), 10)
    assert link.gateways == 2 and await link.connected()
    assert sorted(await link.ask("cancel", uid="x")) == [1, 2]
    assert gateways[0].heard[-1]["do"] == "cancel" and gateways[0].heard[-1]["uid"] == "x"
    await link.close()
    await asyncio.wait(tasks)


async def test_a_late_gateway_gets_the_picture_first(tmp_path: Path) -> None:
    link = GatewayLink()
    await link.start(tmp_path / "s")
    await link.show({"a": {"stopped": True}})
    late = PlayedGateway(tmp_path / "s", None)
    task = asyncio.create_task(late.run())
    await asyncio.wait_for(late.heard_one.wait(), 10)
    assert late.heard[0] == {"id": 0, "do": "picture", "backends": {"a": {"stopped": True}}}
    await link.close()
    await asyncio.wait([task])


async def test_a_no_is_raised_and_a_gateway_that_goes_is_left_out(tmp_path: Path) -> None:
    link = GatewayLink()
    await link.start(tmp_path / "s")
    gateway = PlayedGateway(tmp_path / "s", {"error": "line 3"})
    task = asyncio.create_task(gateway.run())
    await asyncio.wait_for(gateway.heard_one.wait(), 10)
    with pytest.raises(Refused, match="line 3"):
        await link.ask("reload")
    gateway.answer = None
    asking = asyncio.create_task(link.ask("stats"))
    while gateway.heard[-1]["do"] != "stats":
        gateway.heard_one.clear()
        await asyncio.wait_for(gateway.heard_one.wait(), 10)
    gateway.writer.close()
    assert await asyncio.wait_for(asking, 5) == []
    await link.close()
    task.cancel()


async def test_what_a_gateway_wants(tmp_path: Path) -> None:
    wanted: asyncio.Queue[str] = asyncio.Queue()
    link = GatewayLink(wanted.put_nowait)
    await link.start(tmp_path / "s")
    _, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(b'{"wanted": "a"}\n')
    assert await asyncio.wait_for(wanted.get(), 10) == "a"
    writer.close()
    await link.close()


async def test_without_a_gateway_there_is_no_answer() -> None:
    link = GatewayLink()
    assert await link.ask("stats") == [] and link.gateways == 0
    assert await link.connected(0.01) is False


def test_the_socket_is_its_owners_only_and_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        with listen_private(tmp_path / "s"):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
