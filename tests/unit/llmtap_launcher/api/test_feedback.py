"""The ratings' HTTP: what is accepted is in the database after the writer's next pass, everything else is refused clearly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request

from llmtap.core.config import Config
from llmtap_launcher.api import feedback
from llmtap_launcher.api.feedback import Feedback, by_key
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.writer import Writer
from support.captures import Captures

KEYS = {"own": "sk-llmtap-own", "other": "sk-llmtap-other"}


@pytest.fixture
def captures(tmp_path: Path) -> Any:
    with Captures(tmp_path) as it:
        it.uid = it.exchange([{"role": "user", "content": "hello"}], "hi", asked={"key_name": "own", "request_id": "mine-1"})  # type: ignore[attr-defined]
        it.store()
        yield it


def config(folder: Path, auth: bool) -> Config:
    keys = [{"name": name, "key_sha256": sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
    return Config.model_validate({"capture": {"dir": str(folder)}, "auth": {"enabled": auth, "keys": keys}})


@pytest.fixture(params=[False, True], ids=["open", "keys"])
async def client(request: Any, captures: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(feedback, "WAIT_S", 0.2)
    it = config(captures.folder, request.param)
    routes = Feedback(it.spool_dir, it.db_path, by_key(it))
    transport = httpx.ASGITransport(Starlette(routes=routes.routes()))
    headers = {"authorization": f"Bearer {KEYS['own']}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as http:
        yield http
    routes.close()


def stored(captures: Any, sql: str) -> list[tuple[Any, ...]]:
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        return [tuple(row) for row in conn.execute(sql)]


async def test_a_thumb_and_a_correction(client: httpx.AsyncClient, captures: Any) -> None:
    answer = await client.post(f"/api/v1/exchanges/{captures.uid}/ratings", json={"thumb": "up", "comment": "nice"})
    assert (answer.status_code, answer.json()["value"], answer.json()["name"]) == (201, 1.0, "thumb")
    answer = await client.post(
        "/api/v1/exchanges/mine-1/ratings", json={"name": "better", "value": 0, "correction": "hello to you", "source": "editor"}
    )
    assert (answer.status_code, answer.json()["uid"]) == (201, captures.uid)
    rows = stored(captures, "SELECT name, value, source, comment FROM ratings ORDER BY name")
    assert rows == [("better", 0.0, "editor", None), ("thumb", 1.0, "user", "nice")]
    sql = "SELECT b.text, m.depth FROM ratings r JOIN messages m ON m.hash = r.correction JOIN bodies b ON b.id = m.body_id"
    assert stored(captures, sql) == [("hello to you", 1)]
    listed = (await client.get(f"/api/v1/exchanges/{captures.uid}/ratings")).json()
    assert [(r["name"], r["corrected"]) for r in listed["ratings"]] == [("thumb", False), ("better", True)]


async def test_tags_and_metadata(client: httpx.AsyncClient, captures: Any) -> None:
    answer = await client.patch(f"/api/v1/exchanges/{captures.uid}", json={"tags": ["golden"], "metadata": {"case": 7}})
    assert (answer.status_code, answer.json()) == (200, {"uid": captures.uid, "tags": ["golden"], "metadata": {"case": 7}})
    assert stored(captures, "SELECT tags, metadata_json FROM exchanges") == [('["golden"]', '{"case":7}')]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "name is missing"),
        ({"name": "x"}, "says nothing"),
        ({"thumb": "up", "value": 3}, "give either"),
        ({"thumb": "sideways"}, "thumb: "),
        ({"name": "a b", "value": 1}, "name: "),
        ({"name": "x", "value": "1"}, "value"),
        ({"name": "x", "value": 1, "more": 1}, "more: "),
        ({"name": "x", "comment": "c" * 20_001}, "comment: "),
        ([1], "dictionary"),
    ],
)
async def test_what_is_no_rating(client: httpx.AsyncClient, captures: Any, body: Any, says: str) -> None:
    answer = await client.post(f"/api/v1/exchanges/{captures.uid}/ratings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert says in error["message"]
    assert stored(captures, "SELECT * FROM ratings") == []


async def test_bodies_that_are_none(client: httpx.AsyncClient, captures: Any) -> None:
    for content, says in ((b"{", "not JSON"), (b'"' + b"x" * 1_000_001 + b'"', "larger than")):
        answer = await client.post(f"/api/v1/exchanges/{captures.uid}/ratings", content=content)
        assert answer.status_code == 400 and says in answer.json()["error"]["message"]
    answer = await client.patch(f"/api/v1/exchanges/{captures.uid}", json={})
    assert answer.status_code == 400 and "changes nothing" in answer.json()["error"]["message"]
    assert (await client.delete(f"/api/v1/exchanges/{captures.uid}")).status_code == 405


async def test_nobodys_exchange(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/exchanges/nobody/ratings", json={"thumb": "up"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "exchange_not_found")


async def test_keys_rate_what_they_asked(client: httpx.AsyncClient, captures: Any, request: pytest.FixtureRequest) -> None:
    strict = "keys" in request.node.callspec.id
    path = f"/api/v1/exchanges/{captures.uid}/ratings"
    for headers, refused in (
        ({"authorization": f"Bearer {KEYS['other']}"}, 404),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": ""}, 401),
    ):
        answer = await client.post(path, json={"thumb": "up"}, headers=headers)
        assert answer.status_code == (refused if strict else 201), headers
    answer = await client.post(path, json={"thumb": "up"}, headers={"authorization": "", "x-api-key": KEYS["own"]})
    assert answer.status_code == 201


async def test_an_exchange_that_is_stored_meanwhile(captures: Any, tmp_path: Path) -> None:
    it = config(captures.folder, False)
    routes = Feedback(it.spool_dir, it.db_path, by_key(it))
    uid = captures.exchange([{"role": "user", "content": "quick"}], "yes")
    captures.store()
    looked: list[str | None] = []
    look = routes._look

    def once(ident: str, key: str | None) -> str | None:
        looked.append(look(ident, key) if looked else None)  # not there yet at the first look
        return looked[-1]

    routes._look = once  # type: ignore[method-assign]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Starlette(routes=routes.routes())), base_url="http://g") as http:
        assert (await http.post(f"/api/v1/exchanges/{uid}/ratings", json={"thumb": "down"})).status_code == 201
    assert looked == [None, uid]
    routes.close()


async def test_what_cannot_be_kept_is_not_accepted(captures: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    it = config(captures.folder, False)
    routes = Feedback(tmp_path / "file" / "spool", it.db_path, by_key(it))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Starlette(routes=routes.routes())), base_url="http://g") as http:
        answer = await http.post(f"/api/v1/exchanges/{captures.uid}/ratings", json={"thumb": "down"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    routes.close()


async def test_a_rebuild_has_the_ratings(captures: Any) -> None:
    assert isinstance(Writer, type)
    app = feedback.application(config(captures.folder, False))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g") as http:
        assert (await http.post(f"/api/v1/exchanges/{captures.uid}/ratings", json={"thumb": "down"})).status_code == 201
    assert stored(captures, "SELECT value FROM ratings") == [(-1.0,)]


@pytest.mark.parametrize(("headers", "name"), [([], None), ([(b"x-llmtap-client", b"alice")], "alice")])
def test_behind_a_gateway_the_gateway_says_who_it_is(headers: list[tuple[bytes, bytes]], name: str | None) -> None:
    found = feedback.by_gateway(Request({"type": "http", "headers": headers}))
    assert (found.name if found is not None else None) == name
