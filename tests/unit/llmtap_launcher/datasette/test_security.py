from __future__ import annotations

from typing import Any

import pytest

from llmtap_launcher.datasette import security


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LOCALHOST:8001", "127.0.0.1", "127.0.0.1:8001", "[::1]:8001", "[::1]", "a.localhost:1", "10.0.0.3:80"],
)
def test_addresses_and_localhost_are_answered(host: str) -> None:
    assert security.host_allowed(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8001", "localhost.evil.example", "127.0.0.1.evil.example", "[x]:1"]
)
def test_names_that_could_be_rebound_are_not(host: str) -> None:
    assert not security.host_allowed(host)


async def answer(host: str, headers: list[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"captured"})

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await security.guard(app)({"type": "http", "headers": [(b"host", host.encode())]}, receive, send)
    return sent


async def test_every_answer_carries_the_policy_once() -> None:
    start, _ = await answer("127.0.0.1:8001", [(b"content-type", b"text/html"), (b"Content-Security-Policy", b"default-src *")])
    policies = [value for name, value in start["headers"] if name.lower() == b"content-security-policy"]
    assert policies == [security.POLICY.encode()]
    assert (b"content-type", b"text/html") in start["headers"]


async def test_a_domain_name_is_refused_with_the_policy_and_without_the_page() -> None:
    start, body = await answer("evil.example", [])
    assert start["status"] == 403
    assert b"captured" not in body["body"]
    assert dict(start["headers"])[b"content-security-policy"] == security.POLICY.encode()


async def test_other_scopes_pass_through() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        return {}

    await security.guard(app)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


def test_no_inline_script_and_nothing_from_elsewhere() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in security.POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert all("http" not in value and "*" not in value and "data:" not in value for value in rules.values())


@pytest.mark.parametrize("pair", [tuple, list])
async def test_a_pictures_own_policy_stays_however_the_headers_are_paired(pair: type) -> None:
    async def picture(scope: Any, receive: Any, send: Any) -> None:
        policy = pair((b"content-security-policy", security.PICTURE_POLICY.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": [policy]})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await security.guard(picture)({"type": "http", "headers": [(b"host", b"localhost")]}, send, send)
    policies = [value for name, value in sent[0]["headers"] if name == b"content-security-policy"]
    assert policies == [security.PICTURE_POLICY.encode()]
