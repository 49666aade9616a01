"""The gateway's end of the line to its launcher."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.errors import NoHealthyBackend
from llmtap.policy.backends import Backend, Backends
from llmtap.remote import Remote


class Gateway:
    def __init__(self) -> None:
        self.all = Backends([Backend("a", "127.0.0.1", 1, state="up"), Backend("b", "127.0.0.1", 2, state="up")])
        self.problem: str | None = None
        self.checked: list[str] = []

    def in_flight_list(self) -> list[dict[str, Any]]:
        return [{"id": "1"}]

    def cancel(self, uid: str) -> bool:
        return uid == "1"

    def reload_now(self) -> str | None:
        return self.problem

    def busy(self) -> dict[str, int]:
        return {"a": 2, "gone": 1}

    def stats(self) -> dict[str, Any]:
        return {"in_flight": 3}

    def backends(self) -> Backends | None:
        return self.all

    def check_now(self, backend: Backend) -> None:
        self.checked.append(backend.name)


class Launcher:
    """The other end."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self.gateway, self.path = gateway, path
        self.came: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.remote = Remote(gateway, path)

    async def listen(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.came.put((reader, writer))

        self.server = await asyncio.start_unix_server(serve, self.path)

    async def accept(self) -> None:
        self.reader, self.writer = await asyncio.wait_for(self.came.get(), 10)

    async def ask(self, do: str, **more: Any) -> Any:
        self.writer.write(orjson.dumps({"id": 7, "do": do, **more}) + b"\n")
        return await self.hear()

    async def hear(self) -> Any:
        return orjson.loads(await asyncio.wait_for(self.reader.readline(), 10))


@contextlib.asynccontextmanager
async def lines(tmp_path: Path) -> AsyncIterator[Launcher]:
    launcher = Launcher(Gateway(), tmp_path / "s")
    await launcher.listen()
    launcher.remote.start()
    await launcher.accept()
    try:
        yield launcher
    finally:
        launcher.remote.stop()
        launcher.writer.close()
        launcher.server.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ({"do": "in_flight"}, [{"id": "1"}]),
        ({"do": "cancel", "uid": "1"}, True),
        ({"do": "cancel", "uid": "2"}, False),
        ({"do": "reload"}, True),
        ({"do": "load"}, {"a": [2, 0.0], "b": [0.0, 0.0], "gone": [1, 0.0]}),
    ],
)
async def test_it_answers(tmp_path: Path, question: dict[str, Any], value: Any) -> None:
    async with lines(tmp_path) as launcher:
        assert await launcher.ask(**question) == {"id": 7, "value": value}


async def test_it_tells_of_every_backend(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        stats = (await launcher.ask("stats"))["value"]
        assert stats["in_flight"] == 3
        assert [(row["name"], row["state"]) for row in stats["backends"]] == [("a", "up"), ("b", "up")]


async def test_what_is_refused_and_what_fails_is_said_and_the_line_goes_on(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        launcher.gateway.problem = "line 3: wrong"
        assert await launcher.ask("reload") == {"id": 7, "error": "line 3: wrong"}
        assert "unknown" in (await launcher.ask("dance"))["error"]
        assert "KeyError" in (await launcher.ask("picture"))["error"]
        assert (await launcher.ask("in_flight"))["value"]


async def test_a_stopped_backend_is_waited_for_and_comes_back(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        a, b = launcher.gateway.all
        picture = {"a": {"stopped": True, "starts_within_s": 9.0, "reason": "later"}, "b": {"draining": True}, "other": {}}
        assert (await launcher.ask("picture", backends=picture))["value"] is True
        assert (a.state, a.starts_within_s, a.reason) == ("stopped", 9.0, "later")
        assert b.draining
        (way,) = launcher.gateway.all.ways("any", None)
        assert way.startable == (a,)
        wanted = launcher.gateway.all.wanted
        assert wanted is not None
        wanted(a)
        assert await launcher.hear() == {"wanted": "a"}
        await launcher.ask("picture", backends={"a": {}, "b": {}})
        assert (a.state, a.starts_within_s, b.draining, launcher.gateway.checked) == ("unknown", None, False, ["a"])


async def test_a_backend_that_does_not_start_any_more_is_waited_for_no_longer(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        for name in ("a", "b"):
            launcher.gateway.all.drain(name, name == "b")
        await launcher.ask("picture", backends={"a": {"stopped": True, "starts_within_s": 9.0}, "b": {"draining": True}})
        assert launcher.gateway.all.ways("any", None)
        told: list[bool] = []
        launcher.gateway.all.shared.freed.append(lambda: told.append(True))
        await launcher.ask("picture", backends={"a": {"stopped": True, "starts_within_s": None}, "b": {"draining": True}})
        assert told
        with pytest.raises(NoHealthyBackend):
            launcher.gateway.all.ways("any", None)


async def test_the_picture_holds_for_the_backends_of_the_next_configuration(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        await launcher.ask("picture", backends={"a": {"stopped": True, "starts_within_s": 9.0}})
        launcher.gateway.all = Backends([Backend("a", "127.0.0.1", 1)])
        launcher.remote.apply()
        assert launcher.gateway.all["a"].state == "stopped"


async def test_it_calls_again_when_the_line_is_lost(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        launcher.writer.close()
        await launcher.accept()
        assert (await launcher.ask("cancel", uid="1"))["value"] is True


async def test_without_a_launcher_nothing_is_said_and_nothing_breaks(tmp_path: Path) -> None:
    remote = Remote(Gateway(), tmp_path / "nobody")
    remote.start()
    await asyncio.sleep(0)
    remote.wanted(Backend("a", "127.0.0.1", 1))
    remote.stop()


async def test_what_is_wanted_is_said_once_for_each_picture_while_requests_wait(tmp_path: Path) -> None:
    async with lines(tmp_path) as launcher:
        stopped = {"a": {"stopped": True, "starts_within_s": 9.0}}
        await launcher.ask("picture", backends=stopped)
        a = launcher.gateway.all["a"]
        wanted = launcher.gateway.all.wanted
        assert wanted is not None
        wanted(a)
        wanted(a)
        launcher.gateway.all.shared.freed.append(lambda: wanted(a))  # a request that goes on waiting
        assert await launcher.hear() == {"wanted": "a"}
        launcher.writer.write(orjson.dumps({"id": 8, "do": "picture", "backends": stopped}) + b"\n")
        assert [await launcher.hear(), await launcher.hear()] == [{"wanted": "a"}, {"id": 8, "value": True}]
