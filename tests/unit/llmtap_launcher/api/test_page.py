"""The page at /api/docs."""

from __future__ import annotations

from typing import Any

import pytest
from bs4 import BeautifulSoup

from llmtap_launcher.api.page import page, type_of

OPENAPI: dict[str, Any] = {
    "info": {"title": "T <1>", "version": "1"},
    "components": {
        "schemas": {
            "Wish": {"required": ["a"], "properties": {"a": {"type": "string", "description": "x & y"}, "b": {"type": "integer"}}}
        }
    },
    "paths": {
        "/p/{n}": {
            "post": {
                "operationId": "op",
                "description": "Does <it>.",
                "parameters": [{"name": "n", "schema": {"type": "string"}, "required": True}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Wish"}}}},
                "responses": {
                    "200": {
                        "description": "ok",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Wish"}}},
                    }
                },
            }
        }
    },
}


def test_every_operation_with_its_members_and_a_command() -> None:
    soup = BeautifulSoup(page(OPENAPI), "html.parser")
    text = soup.get_text(" ")
    assert "Does <it>." in text and "x & y" in text and "integer, optional" in text
    assert soup.find("section", id="op") is not None and soup.find("script") is None
    assert """curl -X POST http://127.0.0.1:8000/p/{n} -H 'content-type: application/json' -d '{"a": "A"}'""" in text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "items": {"type": "string"}}, "list of string"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "number or null"),
        ({"enum": ["a", "b"]}, "a | b"),
        ({"$ref": "#/components/schemas/Row"}, "Row"),
        ({}, "any"),
    ],
)
def test_types_in_words(schema: dict[str, Any], words: str) -> None:
    assert type_of(schema, {}) == words
