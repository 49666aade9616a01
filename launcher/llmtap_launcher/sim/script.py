"""What a choice will say, token by token, decided before the first token is sent.

A script is a list of steps, one for each generated token, the end-of-sequence token included (vLLM counts it in
`completion_tokens`). A step may make no text: control tokens (`<think>`, tool markup) and tokens whose text is held back while a
stop string might be forming. The shape follows recordings of vLLM 0.33.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from . import text
from .text import Tokenizer

Channel = Literal["content", "reasoning", "control", "tool_name", "tool_args"]
_SHORTEST, _LONGEST = 20, 120


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token: where its text goes, and whether it is the last of its choice."""

    token: int
    channel: Channel
    delta: str = ""
    call: int = 0  # index of the tool call, for the tool channels
    finish: str | None = None  # stop | length
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call to make: the function's name and its arguments as a JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What bears on a choice's text besides the prompt. `length`: tokens wanted, end-of-sequence included."""

    max_tokens: int
    length: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    thinking: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    calls: tuple[Call, ...] = ()
    forced_call: bool = False
    fixed_text: str | None = None
    lead: str = ""  # a text completion goes on after a space, a chat message begins without


def write(tokenizer: Tokenizer, random: Random, plan: Plan) -> list[Step]:
    """The script of one choice: at least one step, the last one with its finish reason."""
    steps: list[Step] = []
    if plan.thinking:
        thoughts = text.compose_whole(tokenizer, random, 8, 40)
        steps += _control(tokenizer, "<think>")
        steps += _spoken(tokenizer, [*tokenizer.encode("\n"), *thoughts, *tokenizer.encode("\n")], "reasoning")
        steps += _control(tokenizer, "</think>")
    if plan.calls:
        if plan.thinking and not plan.forced_call:
            steps += _spoken(tokenizer, tokenizer.encode("\n\n"), "content")
        for index, call in enumerate(plan.calls):
            steps += _call(tokenizer, index, call)
    else:
        lead = tokenizer.encode("\n\n") if plan.thinking else []
        steps += _spoken(tokenizer, [*lead, *_answer(tokenizer, random, plan, len(steps) + len(lead))], "content")
    if not plan.ignore_eos:
        steps.append(Step(text.EOS, "control", finish="stop"))
    if len(steps) > plan.max_tokens or steps[-1].finish is None:
        steps = steps[: plan.max_tokens]
        steps[-1] = replace(steps[-1], finish="length")
    return _cut_at_stop(steps, plan) if plan.stop else steps


def _answer(tokenizer: Tokenizer, random: Random, plan: Plan, before: int) -> list[int]:
    if plan.fixed_text is not None:
        return tokenizer.encode(plan.fixed_text)
    if plan.ignore_eos:
        return text.compose(tokenizer, random, max(1, plan.max_tokens - before), plan.lead)
    if plan.length is not None:
        return text.compose(tokenizer, random, max(1, plan.length - before - 1), plan.lead)
    shortest = max(_SHORTEST, plan.min_tokens)
    return text.compose_whole(tokenizer, random, shortest, max(_LONGEST, shortest + 20), plan.lead)


def _control(tokenizer: Tokenizer, markup: str) -> list[Step]:
    return [Step(token, "control") for token in tokenizer.encode(markup)]


def _spoken(tokenizer: Tokenizer, tokens: Sequence[int], channel: Channel, call: int = 0) -> list[Step]:
    return [Step(token, channel, delta, call) for token, delta in zip(tokens, tokenizer.deltas(tokens), strict=True)]


def _call(tokenizer: Tokenizer, index: int, call: Call) -> list[Step]:
    name = _control(tokenizer, call.name)
    name[-1] = replace(name[-1], channel="tool_name", delta=call.name, call=index)
    return [
        *_control(tokenizer, '<tool_call>\n{"name": "'),
        *name,
        *_control(tokenizer, '", "arguments": '),
        *_spoken(tokenizer, tokenizer.encode(call.arguments), "tool_args", index),
        *_control(tokenizer, "}\n</tool_call>"),
    ]


def _cut_at_stop(steps: list[Step], plan: Plan) -> list[Step]:
    """Applies stop strings as vLLM does: text that could be the start of one is held back, the rest of the match is not sent."""
    longest = max(map(len, plan.stop))
    hold = 0 if plan.include_stop else longest - 1
    said, sent = "", 0
    out: list[Step] = []
    for step in steps:
        if step.channel == "content":
            said += step.delta
            found = [(at, stop) for stop in plan.stop if (at := said.find(stop, max(0, sent - longest))) >= 0]
            if found:
                at, stop = min(found)
                end = at + len(stop) if plan.include_stop else at
                out.append(replace(step, delta=said[sent:end], finish="stop", stop_reason=stop))
                return out
        if step.channel == "content" or (step.finish and said[sent:]):
            end = len(said) if step.finish else max(sent, len(said) - hold)
            step = replace(step, delta=said[sent:end], channel="content")
            sent = end
        out.append(step)
    return out
