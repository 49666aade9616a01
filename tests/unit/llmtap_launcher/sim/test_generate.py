"""The two generating endpoints: numbers, limits, choices, tools, and what changes the words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from support import recordings
from support.asgi_sim import SimApp
from support.shape import shape

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def said(app: SimApp, content: str = "Hello", **fields: Any) -> str:
    return str((await app.chat(content, **fields)).json()["choices"][0]["message"]["content"])


async def test_the_same_prompt_gets_the_same_words_and_another_gets_others() -> None:
    app = SimApp()
    assert await said(app, "Hello") == await said(SimApp(), "Hello", temperature=1.5, seed=7)
    assert await said(app, "Hello") != await said(app, "Hello!")
    assert await said(app, "Hello") != await said(SimApp(seed=1), "Hello")


async def test_directives_do_not_change_the_words() -> None:
    app = SimApp()
    assert await said(app, "[[sim:tps=1000]] Hello") == await said(app, "Hello")


async def test_usage_agrees_with_tokenize_and_with_the_tokens() -> None:
    app = SimApp()
    messages = [{"role": "user", "content": "Hello, how are you?"}]
    reply = (await app.request("POST", "/v1/chat/completions", {"messages": messages, "return_token_ids": True})).json()
    counted = (await app.request("POST", "/tokenize", {"messages": messages})).json()
    usage = reply["usage"]
    assert usage["prompt_tokens"] == counted["count"]
    assert reply["prompt_token_ids"] == counted["tokens"]
    assert usage["completion_tokens"] == len(reply["choices"][0]["token_ids"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # the end-of-sequence token is counted, not shown
    text = (await app.request("POST", "/tokenize", {"prompt": reply["choices"][0]["message"]["content"]})).json()
    assert usage["completion_tokens"] == text["count"] + 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_limits(field: str) -> None:
    reply = (await SimApp().chat("Hello", **{field: 6})).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 6


async def test_max_completion_tokens_wins() -> None:
    assert (await SimApp().chat("Hello", max_tokens=50, max_completion_tokens=2)).json()["usage"]["completion_tokens"] == 2


async def test_completions_have_sixteen_tokens_unless_told_otherwise() -> None:
    assert (await SimApp().complete("Hello")).json()["usage"]["completion_tokens"] == 16


async def test_a_wanted_number_of_tokens() -> None:
    reply = (await SimApp().chat("[[sim:tokens=300]] Hello")).json()
    assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (300, "stop")


async def test_ignore_eos() -> None:
    reply = (await SimApp().complete("Hello", max_tokens=333, ignore_eos=True)).json()
    assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (333, "length")


async def test_an_answer_never_leaves_the_context() -> None:
    app = SimApp(max_model_len=64)
    reply = (await app.chat("Hello", max_tokens=64)).json()
    assert reply["usage"]["total_tokens"] <= 64


@pytest.mark.parametrize(
    "name", ["err_prompt_too_long", "err_prompt_too_long_stream", "err_unknown_model", "err_unknown_model_stream"]
)
async def test_recorded_refusals(name: str) -> None:
    recorded = recordings.load(f"vllm-0.33.0/{name}")
    reply = await SimApp().request("POST", recorded.path, recorded.request_body)
    assert (reply.status, reply.body) == (recorded.status, recorded.body)


async def test_a_model_need_not_be_named() -> None:
    app = SimApp(models=("a", "b"))
    assert (await app.chat("Hello")).json()["model"] == "a"
    assert (await app.chat("Hello", model="b")).json()["model"] == "b"
    assert (await app.chat("Hello", model="c")).json()["error"]["message"] == (
        "The model `c` does not exist. Valid aliases: a, b."
    )


async def test_ids_follow_the_request_id() -> None:
    app = SimApp()
    assert (await app.chat("Hello", headers={"x-request-id": "my-req"})).json()["id"] == "chatcmpl-my-req"
    first, second = [(await app.complete("Hello")).json()["id"] for _ in range(2)]
    assert first != second
    assert first.startswith("cmpl-")


async def test_choices_differ_and_their_tokens_add_up() -> None:
    reply = (await SimApp().chat("Hello", n=3, return_token_ids=True)).json()
    contents = [c["message"]["content"] for c in reply["choices"]]
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert len(set(contents)) == 3
    assert reply["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in reply["choices"])


async def test_streamed_choices_interleave() -> None:
    events = (await SimApp().chat("Hello", n=2, stream=True)).events()
    assert [e["choices"][0]["index"] for e in events[:6]] == [0, 1, 0, 1, 0, 1]
    assert [e["choices"][0]["delta"] for e in events[:2]] == [{"role": "assistant", "content": ""}] * 2


async def test_prompts_are_numbered_through() -> None:
    app = SimApp()
    reply = (await app.complete(["Hello", "Bye"], n=2, max_tokens=30)).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3]
    alone = (await app.complete("Bye", n=2, max_tokens=30)).json()
    assert [c["text"] for c in reply["choices"][2:]] == [c["text"] for c in alone["choices"]]


async def test_prompts_of_token_ids() -> None:
    app = SimApp()
    tokens = (await app.request("POST", "/tokenize", {"prompt": "Hello world"})).json()["tokens"]
    by_text, by_ids = [(await app.complete(p)).json() for p in ("Hello world", tokens)]
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"]
    assert by_ids["usage"]["prompt_tokens"] == len(tokens)
    both = (await app.complete([tokens, tokens[:1]])).json()
    assert both["usage"]["prompt_tokens"] == len(tokens) + 1


async def test_no_prompt_at_all() -> None:
    reply = await SimApp().complete([])
    assert (reply.status, reply.json()["error"]["message"]) == (400, "You must pass at least one prompt")


@pytest.mark.parametrize("stream", [True, False])
async def test_echo(stream: bool) -> None:
    reply = await SimApp().complete("Hello", echo=True, max_tokens=3, stream=stream)
    texts = [e["choices"][0]["text"] for e in reply.events()] if stream else [reply.json()["choices"][0]["text"]]
    assert texts[0].startswith("Hello ")
    assert len(texts) == (3 if stream else 1)


async def test_a_stop_string() -> None:
    app = SimApp()
    whole = await said(app)
    stop = whole[30:34]
    choice = (await app.chat("Hello", stop=stop)).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


async def test_thinking_when_asked() -> None:
    app = SimApp()
    plain = (await app.chat("Hello")).json()
    assert plain["choices"][0]["message"]["reasoning"] is None
    thinking = (await app.chat("Hello", chat_template_kwargs={"enable_thinking": True})).json()
    assert thinking["choices"][0]["message"]["reasoning"].strip()
    assert thinking["usage"]["completion_tokens_details"]["reasoning_tokens"] > 8
    silent = (await SimApp(reasoning=True).chat("Hello", chat_template_kwargs={"enable_thinking": False})).json()
    assert silent["choices"][0]["message"]["reasoning"] is None
    assert silent["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_parallel_tool_calls() -> None:
    reply = (await SimApp().chat("What is the weather in Paris and Rome?", tools=[WEATHER])).json()
    message = reply["choices"][0]["message"]
    assert [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert len({c["id"] for c in message["tool_calls"]}) == 2
    assert (message["content"], reply["choices"][0]["finish_reason"]) == (None, "tool_calls")


@pytest.mark.parametrize(
    ("choice", "finish", "called"),
    [
        ("none", "stop", False),
        ("auto", "stop", False),
        ("required", "tool_calls", True),
        ({"type": "function", "function": {"name": "get_weather"}}, "stop", True),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_tool_choice(choice: object, finish: str, called: bool, stream: bool) -> None:
    reply = await SimApp().chat("Hello", tools=[WEATHER], tool_choice=choice, stream=stream)
    if stream:
        choices = [e["choices"][0] for e in reply.events()]
        assert any("tool_calls" in c["delta"] for c in choices) == called
        assert choices[-1]["finish_reason"] == finish
    else:
        assert ("tool_calls" in reply.json()["choices"][0]["message"]) == called
        assert reply.json()["choices"][0]["finish_reason"] == finish


async def test_streamed_arguments_join_to_the_whole() -> None:
    reply = await SimApp().chat("the weather in Malmö and Rome", tools=[WEATHER], stream=True)
    arguments: dict[int, str] = {}
    for event in reply.events():
        for call in event["choices"][0]["delta"].get("tool_calls", []):
            arguments.setdefault(call["index"], "")
            arguments[call["index"]] += call["function"].get("arguments", "")
    assert [json.loads(a) for a in arguments.values()] == [{"city": "Malmö"}, {"city": "Rome"}]


async def test_structured_output_fits_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    Draft202012Validator(schema).validate(json.loads(await said(SimApp(), "Ada, 36", response_format=wanted)))
    assert isinstance(json.loads(await said(SimApp(), response_format={"type": "json_object"})), dict)


async def test_logprobs_of_a_whole_reply() -> None:
    reply = (await SimApp().chat("Hello", logprobs=True, top_logprobs=2, max_tokens=4)).json()
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == 4
    assert "".join(e["token"] for e in entries) == reply["choices"][0]["message"]["content"]


async def test_offsets_of_completion_logprobs_are_the_same_streamed() -> None:
    app = SimApp()
    whole = (await app.complete("Hello", logprobs=1, max_tokens=5)).json()["choices"][0]["logprobs"]
    pieces = [e["choices"][0]["logprobs"] for e in (await app.complete("Hello", logprobs=1, max_tokens=5, stream=True)).events()]
    assert [p["text_offset"][0] for p in pieces] == whole["text_offset"]
    assert {shape(p) for p in pieces} == {shape(pieces[0])}


async def test_tool_parsing_is_counted() -> None:
    app = SimApp()
    await app.chat("the weather in Rome", tools=[WEATHER])
    labels = {"model_name": "tiny", "mode": "non_streaming", "outcome": "tool_call", "request_type": "chat_completions"}
    assert app.sim.metrics.registry.get_sample_value("vllm:tool_call_parser_invocations_total", labels) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [5]},
        {"messages": [{"role": "assistant", "tool_calls": [5]}]},
        {"messages": [{"role": "assistant", "tool_calls": 5}]},
        {"messages": [{"role": "user", "content": [5]}]},
        {"response_format": "x"},
        {"response_format": {"type": "json_schema", "json_schema": 5}},
        {"tools": 5},
        {"tools": [5]},
        {"tools": [{"function": 5}], "tool_choice": "auto"},
        {"chat_template_kwargs": []},
        {"stop": {"a": 1}},
        {"n": "many"},
        {"stream": "maybe"},
    ],
)
async def test_bodies_of_the_wrong_form_are_the_clients_mistake(fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    reply = await SimApp().request("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.json()["error"]["code"] == 400


async def test_odd_but_valid_bodies_are_answered() -> None:
    parts = [{"type": "text", "text": 5}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": [{"function": 5}]}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": 5, "required": 7}}}
    reply = await SimApp().request(
        "POST", "/v1/chat/completions", {"messages": turns, "tools": [tool], "tool_choice": "required"}
    )
    assert reply.status == 200
