from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.wire import faults


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b'{"error":{"message":"m","type":"NotFoundError","param":"model","code":404}}', 404, ("NotFoundError", "m")),
        (b'{"error":"Unauthorized"}', 401, ("http_401", "Unauthorized")),
        (b'{"detail":"Not Found"}', 404, ("http_404", "Not Found")),
        (
            b'{"detail":[{"loc":["body","model"],"msg":"Field required","type":"missing","input":"my prompt"}]}',
            422,
            ("http_422", "body.model: Field required"),
        ),
        (b'{"object":"error","message":"m","type":"BadRequestError","code":400}', 400, ("BadRequestError", "m")),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', 529, ("overloaded_error", "m")),
        (b'{"error":"{\\"error\\":{\\"code\\":400,\\"message\\":\\"m\\",\\"type\\":\\"exceed\\"}}"}', 400, ("exceed", "m")),
        (b'{"error":"{not json"}', 500, ("http_500", "{not json")),
        (b'{"error":{"message":"m","code":"model_not_found"}}', 404, ("model_not_found", "m")),
        (b'{"error":{"code":500}}', 500, ("http_500", '{"code":500}')),
        (b'{"message":"m"}', 400, ("http_400", "m")),
        (b'{"strange":1}', 400, ("http_400", '{"strange":1}')),
        (b"404 page not found\n", 404, ("http_404", "404 page not found")),
        (b"<html>\xff</html>", 502, ("http_502", "<html>\ufffd</html>")),
        (b'["a"]', 500, ("http_500", '["a"]')),
        (b"", 502, ("http_502", "")),
    ],
)
def test_bodies_of_every_shape(body: bytes, status: int, expected: tuple[str, str]) -> None:
    assert faults.body_error(body, status) == expected


def test_a_validation_message_leaves_the_input_out() -> None:
    body = b'{"detail":[{"loc":["body"],"msg":"bad","input":"my prompt"},"plain"]}'
    assert faults.body_error(body, 422)[1] == "body: bad; plain"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"choices": []}, None),
        ({"error": None, "id": "x"}, None),
        ({"choices": [], "detail": "part of a chunk"}, None),
        ({"error": "text"}, (None, "text")),
        ({"detail": "text"}, (None, "text")),
        ({"type": "error", "code": "server_error", "message": "m", "param": None}, ("server_error", "m")),
        ({"error": {"message": "m", "type": "InternalServerError"}}, ("InternalServerError", "m")),
    ],
)
def test_events_and_bodies_that_carry_an_error(reply: dict[str, Any], expected: Any) -> None:
    assert faults.error_of(reply) == expected


def test_messages_are_capped() -> None:
    assert len(faults.describe("x" * 10_000)[1]) == faults.MAX_MESSAGE
    assert len(faults.body_error(b"x" * 10_000, 500)[1]) == faults.MAX_MESSAGE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "type", "detail", "code"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_any_value_can_be_described(value: Any) -> None:
    kind, message = faults.describe(value)
    assert orjson.dumps([kind, message])
