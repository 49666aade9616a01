"""Ratings and tags as part of the API: described, and answered as described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI

from llmtap_launcher.api import feedback
from llmtap_launcher.api.exchanges import router
from llmtap_launcher.api.feedback import Feedback, by_gateway
from support.captures import Captures


@pytest.fixture
def captures(tmp_path: Path) -> Iterator[Any]:
    with Captures(tmp_path) as it:
        yield it


async def test_answers_are_as_described(captures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "WAIT_S", 0.0)
    uid = captures.exchange([{"role": "user", "content": "hello"}], "hi", asked={"key_name": "own"})
    captures.store()
    routes = Feedback(captures.folder / "spool", captures.db, by_gateway)
    app = FastAPI()
    app.include_router(router(routes), prefix="/api/v1")
    description = app.openapi()
    path, ratings = "/api/v1/exchanges/{uid}", "/api/v1/exchanges/{uid}/ratings"
    assert set(description["paths"]) == {path, ratings}
    asked: list[tuple[str, str, Any, int]] = [
        ("post", ratings, {"thumb": "up", "comment": "nice"}, 201),
        ("post", ratings, {"name": "better", "correction": "hello to you"}, 201),
        ("post", ratings, {}, 400),
        ("get", ratings, None, 200),
        ("patch", path, {"tags": ["golden"], "metadata": {"case": 7}}, 200),
    ]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        for method, where, body, status in asked:
            captures.store()  # what was accepted before
            answer = await client.request(method, where.replace("{uid}", uid), json=body)
            assert answer.status_code == status, answer.text
            operation = description["paths"][where][method]
            if body:
                jsonschema.validate(body, operation["requestBody"]["content"]["application/json"]["schema"])
            said = operation["responses"][str(status) if status < 400 else "4XX"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), {**said, "components": description["components"]})
        other = await client.get(ratings.replace("{uid}", uid), headers={"x-llmtap-client": "somebody"})
        assert (other.status_code, other.json()["error"]["code"]) == (404, "exchange_not_found")
    routes.close()
