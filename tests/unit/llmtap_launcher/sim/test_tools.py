from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llmtap_launcher.sim.requests import Message, Tool
from llmtap_launcher.sim.script import Call
from llmtap_launcher.sim.tools import choose_calls, generate, message_text

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}


def tool(name: str, parameters: dict[str, Any] | None = None, description: str | None = None) -> Tool:
    return Tool.model_validate({"function": {"name": name, "parameters": parameters, "description": description}})


TOOLS = [tool("search_docs"), tool("get_weather", WEATHER)]


def calls(prompt: str, choice: str | None = None, forced: str | None = None, tools: list[Tool] | None = None) -> tuple[Call, ...]:
    return choose_calls(TOOLS if tools is None else tools, choice, forced, [Message(role="user", content=prompt)])


def test_the_weather_in_two_places_is_two_calls() -> None:
    found = calls("What is the weather in Paris and New York today, in fahrenheit?")
    assert [c.name for c in found] == ["get_weather"] * 2
    assert [json.loads(c.arguments)["city"] for c in found] == ["Paris", "New York"]
    found = calls("What is the weather in Paris, Rome and Zürich?")
    assert [json.loads(c.arguments)["city"] for c in found] == ["Paris", "Rome", "Zürich"]
    assert "Zürich" in found[2].arguments
    assert [json.loads(c.arguments)["city"] for c in calls("weather in oslo")] == ["oslo"]


def test_an_enum_takes_the_value_the_prompt_names() -> None:
    assert json.loads(calls("weather in Paris? fahrenheit please")[0].arguments) == {"city": "Paris", "unit": "fahrenheit"}
    assert json.loads(calls("weather in Paris")[0].arguments) == {"city": "Paris", "unit": "celsius"}


@pytest.mark.parametrize("prompt", ["use search_docs for this", "please Search Docs now"])
def test_a_named_tool_is_called(prompt: str) -> None:
    assert calls(prompt) == (Call("search_docs", "{}"),)


def test_two_named_tools_are_both_called() -> None:
    assert [c.name for c in calls("search_docs, then get_weather")] == ["search_docs", "get_weather"]


def test_other_words_call_nothing_unless_they_must() -> None:
    assert calls("Hello") == ()
    assert [c.name for c in calls("Hello", "required")] == ["search_docs"]
    assert [c.name for c in calls("Hello", None, "get_weather")] == ["get_weather"]
    assert calls("weather in Paris", "none") == ()
    assert calls("weather in Paris", tools=[]) == ()


def test_a_tool_is_found_by_its_description() -> None:
    tools = [tool("a"), tool("b", description="Tells the weather")]
    assert [c.name for c in calls("weather in Paris", tools=tools)] == ["b"]


def test_after_a_tools_result_the_answer_comes_in_words() -> None:
    messages = [Message(role="user", content="weather in Paris"), Message(role="tool", content="sunny")]
    assert choose_calls(TOOLS, None, None, messages) == ()


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 20}}, "required": ["n"]},
    {"type": "object", "properties": {"x": {"type": "number"}, "on": {"type": "boolean"}, "no": {"type": "null"}}},
    {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "minItems": 3}},
        "required": ["tags"],
    },
    {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "b": {"const": 7}}},
    {
        "type": "object",
        "properties": {"inner": {"$ref": "#/$defs/inner"}},
        "required": ["inner"],
        "$defs": {"inner": {"type": "object", "properties": {"s": {"type": ["string", "null"]}}, "required": ["s"]}},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("prompt", ["Hello", "take 15 of 'those things' to Oslo", ""])
def test_generated_values_fit_their_schema(schema: dict[str, Any], prompt: str) -> None:
    Draft202012Validator(schema).validate(generate(schema, prompt))


def test_numbers_and_quotes_come_from_the_prompt() -> None:
    schema = {"type": "object", "properties": {"count": {"type": "integer"}, "title": {"type": "string"}}}
    assert generate(schema, 'make 12 copies of "The Sea"') == {"count": 12, "title": "The Sea"}


def test_a_schema_without_end_is_cut_off() -> None:
    loop: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert isinstance(generate(loop, "x"), dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["object", "array", "string", "integer", "#", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "required", "enum", "anyOf", "$ref", "minimum", "minItems", "a"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["type", "properties", "items", "required", "anyOf", "enum", "const", "$ref"]), json_values)
)
def test_a_schema_that_is_none_is_not_an_error(schema: dict[str, Any]) -> None:
    json.dumps(generate(schema, "Hello 5"))


def test_message_text_joins_the_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "b"}]
    assert message_text(Message(role="user", content=parts)) == "a\nb"
    assert message_text(Message(role="user")) == ""
