"""Chat and text completions: from a request's body to the response that will carry the tokens."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from . import template, tools
from .bodies import ChatWriter, CompletionWriter, Envelope, Writer
from .errors import VllmError, internal_error, prompt_too_long, unknown_model
from .faults import Directives, strip_directives
from .front import Received, received
from .requests import BatchRequest, ChatRequest, CompletionRequest, Generate, check_sampling, parse
from .respond import TokenResponse, Work
from .script import Plan, Step, write
from .simulation import Simulation
from .text import rng


def check_model(sim: Simulation, name: str | None) -> str:
    """The served model a request means; none named means the first. Raises VllmError."""
    served = list(sim.settings.models)
    if name and name not in served:
        raise unknown_model(name, served)
    return name or served[0]


async def chat(sim: Simulation, request: Request) -> Response:
    """`POST /v1/chat/completions`. Raises VllmError."""
    got = received(request.scope)
    body = parse(ChatRequest, request.headers.get("content-type", ""), got.body)
    model = check_model(sim, body.model)
    talk = converse(sim, got.directives, body)
    writer = ChatWriter(
        body,
        envelope(request, "chatcmpl", model),
        sim.tokenizer,
        talk.prompt,
        reasoning=talk.reasoning,
        forced_name=body.forced_name is not None,
    )
    return respond(sim, got, body, writer, talk.scripts, [len(talk.prompt)] * body.choices, talk.max_tokens)


async def chat_batch(sim: Simulation, request: Request) -> Response:
    """`POST /v1/chat/completions/batch`: several conversations, answered as the choices of one reply. Raises VllmError."""
    got = received(request.scope)
    batch = parse(BatchRequest, request.headers.get("content-type", ""), got.body)
    model = check_model(sim, batch.model)
    rest = batch.model_dump(exclude={"messages"})
    talks = [converse(sim, got.directives, ChatRequest.model_validate({**rest, "messages": m})) for m in batch.messages]
    if not talks:
        raise VllmError("You must pass at least one conversation")
    body = ChatRequest.model_validate({**rest, "messages": [], "n": len(talks), "stream": False})
    prompt = [token for talk in talks for token in talk.prompt]
    writer = ChatWriter(body, envelope(request, "chatcmpl", model), sim.tokenizer, prompt, reasoning=False, forced_name=False)
    scripts = [script for talk in talks for script in talk.scripts]
    return respond(sim, got, body, writer, scripts, [len(t.prompt) for t in talks], max(t.max_tokens for t in talks))


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation and what will be said to it. `reasoning`: a reasoning parser is at work."""

    prompt: Sequence[int]
    scripts: Sequence[Sequence[Step]]
    max_tokens: int
    reasoning: bool


def converse(sim: Simulation, directives: Directives, body: ChatRequest) -> Talk:
    """Renders the prompt and decides the answers. Raises VllmError."""
    prompt_text = template.render(body.messages, None if body.tool_choice == "none" else body.tools)
    prompt = sim.tokenizer.encode(prompt_text)
    room = _room(sim, prompt)
    check_sampling(body, sim.settings.max_model_len, body.top_logprobs)
    max_tokens = min(body.max_completion_tokens or body.max_tokens or room, room)
    asked = (body.chat_template_kwargs or {}).get("enable_thinking")
    choice = body.tool_choice if isinstance(body.tool_choice, str) else None
    plan = _plan(
        body,
        directives,
        max_tokens,
        thinking=sim.settings.reasoning if asked is None else bool(asked),
        calls=tools.choose_calls(body.tools, choice, body.forced_name, body.messages),
        forced_call=choice == "required" or body.forced_name is not None,
        fixed_text=_structured(body, tools.message_text(body.messages[-1])),
    )
    scripts = _scripts(sim, prompt_text, plan, body.choices)
    if body.tools and body.tool_choice != "none":
        _count_parsing(sim, scripts, bool(body.stream))
    return Talk(prompt, scripts, max_tokens, sim.settings.reasoning or asked is not None)


async def completions(sim: Simulation, request: Request) -> Response:
    """`POST /v1/completions`. Raises VllmError."""
    got = received(request.scope)
    body = parse(CompletionRequest, request.headers.get("content-type", ""), got.body)
    model = check_model(sim, body.model)
    check_sampling(body, sim.settings.max_model_len, body.logprobs)
    prompts = [_prompt(sim, p) for p in _split_prompts(body.prompt)]
    room = min(_room(sim, tokens) for _, tokens in prompts)
    max_tokens = min(body.max_tokens or room, room)
    plan = _plan(body, got.directives, max_tokens, lead=" ")
    scripts = [s for text, _ in prompts for s in _scripts(sim, text, plan, body.choices)]
    writer = CompletionWriter(body, envelope(request, "cmpl", model), sim.tokenizer, prompts)
    lengths = [len(tokens) for _, tokens in prompts for _ in range(body.choices)]
    return respond(sim, got, body, writer, scripts, lengths, max_tokens)


def _split_prompts(prompt: object) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    assert isinstance(prompt, list)
    if not prompt:
        raise VllmError("You must pass at least one prompt")
    return [prompt] if isinstance(prompt[0], int) else prompt


def _prompt(sim: Simulation, prompt: str | list[int]) -> tuple[str, Sequence[int]]:
    if isinstance(prompt, str):
        return prompt, sim.tokenizer.encode(prompt)
    return sim.tokenizer.decode(prompt), prompt


def _room(sim: Simulation, prompt: Sequence[int]) -> int:
    room = sim.settings.max_model_len - len(prompt)
    if room < 1:
        raise prompt_too_long(sim.settings.max_model_len)
    return room


def _plan(body: Generate, directives: Directives, max_tokens: int, **more: object) -> Plan:
    return Plan(
        max_tokens=max_tokens,
        length=directives.tokens,
        min_tokens=min(body.min_tokens or 0, max_tokens),
        ignore_eos=bool(body.ignore_eos),
        stop=body.stops,
        include_stop=bool(body.include_stop_str_in_output),
        **more,  # type: ignore[arg-type]
    )


def _structured(body: ChatRequest, prompt: str) -> str | None:
    """The JSON text that a `response_format` asks for."""
    wanted = body.response_format
    if wanted is None or wanted.type not in ("json_object", "json_schema"):
        return None
    schema = wanted.json_schema.json_schema if wanted.json_schema else None
    value = {"answer": "yes"} if schema is None else tools.generate(schema, prompt)
    return json.dumps(value, ensure_ascii=False)


def _scripts(sim: Simulation, prompt: str, plan: Plan, n: int) -> list[list[Step]]:
    heard = strip_directives(prompt)
    return [write(sim.tokenizer, rng(sim.settings.seed, heard, choice), plan) for choice in range(n)]


def envelope(request: Request, prefix: str, model: str) -> Envelope:
    """What the chunks of the answer to `request` begin with; its id is the client's `x-request-id` if it has one."""
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex[:16]
    return Envelope(f"{prefix}-{request_id}", int(time.time()), model)


def _count_parsing(sim: Simulation, scripts: Sequence[Sequence[Step]], stream: bool) -> None:
    for steps in scripts:
        calling = sum(step.channel in ("tool_name", "tool_args") for step in steps)
        if stream:
            sim.metrics.tool_parser("streaming", "tool_call", calling)
            sim.metrics.tool_parser("streaming", "no_tool_call", len(steps) - calling)
        else:
            sim.metrics.tool_parser("non_streaming", "tool_call" if calling else "no_tool_call")


def respond(
    sim: Simulation,
    got: Received,
    body: Generate,
    writer: Writer,
    scripts: Sequence[Sequence[Step]],
    prompt_tokens: Sequence[int],
    max_tokens: int,
) -> Response:
    """The response that lets the engine say `scripts`, at the pace asked for. Raises VllmError when the engine is dead."""
    if sim.engine.dead:
        raise internal_error()
    asked, settings = got.directives, sim.settings
    rate = settings.tokens_per_second if asked.tokens_per_second is None else asked.tokens_per_second
    ttft_ms = settings.ttft_ms if asked.ttft_ms is None else asked.ttft_ms
    work = Work(
        scripts=scripts,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        ttft_s=ttft_ms / 1000,
        interval_s=1 / rate if rate else 0.0,
        stream=bool(body.stream),
    )
    return TokenResponse(sim.engine, writer, work, got.fault, got.seen)
