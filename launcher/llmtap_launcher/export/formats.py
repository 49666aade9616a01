"""The formats: what a row of each looks like.

Sources: OpenAI's fine-tuning guide and its API reference (supervised and preference input), TRL's `dataset_formats`, the
ShareGPT and Alpaca shapes as Axolotl and LLaMA-Factory document them, OpenAI's Batch API.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from llmtap_launcher.export.conversations import Conversation
from llmtap_launcher.export.normal import Unfit
from llmtap_launcher.export.options import Message, Reasoning, Shape, ToolArgs

Row = dict[str, Any]
#: what a row is made of: a conversation, a pair of replies, a rated reply, an exchange as stored
Kind = Literal["conversation", "pair", "rated", "exchange"]


@dataclass(frozen=True, slots=True)
class Format:
    """`reasoning`: what may be asked for. `tool_args`: the default. `weights`: whether rows tell whose the replies are."""

    name: str
    kind: Kind
    what: str
    reasoning: tuple[Reasoning, ...] = ("drop", "inline")
    tool_args: ToolArgs = "string"
    weights: bool = False
    pictures: bool = True


_TRL: tuple[Reasoning, ...] = ("drop", "keep", "inline")
FORMATS: dict[str, Format] = {
    it.name: it
    for it in (
        Format(
            "openai-sft", "conversation", "OpenAI supervised fine-tuning: messages, tools, a weight on every reply", weights=True
        ),
        Format("openai-dpo", "pair", "OpenAI preference fine-tuning: input, preferred and non-preferred output"),
        Format("trl-sft", "conversation", "TRL SFTTrainer: messages, tools", _TRL, "object"),
        Format("trl-prompt-completion", "conversation", "TRL SFTTrainer, only the last reply is learned", _TRL, "object"),
        Format("trl-preference", "pair", "TRL DPOTrainer, RewardTrainer: prompt, chosen, rejected", _TRL, "object"),
        Format("trl-kto", "rated", "TRL KTOTrainer: prompt, completion, label", _TRL, "object"),
        Format("sharegpt", "conversation", "conversations of from and value (Axolotl, LLaMA-Factory)", pictures=False),
        Format("alpaca", "conversation", "instruction, input, output, system: single questions and answers", pictures=False),
        Format("batch", "exchange", "requests for OpenAI's Batch API and vllm run-batch"),
        Format("raw", "exchange", "every column, messages and ratings of every exchange"),
    )
}


def conversation_row(name: str) -> Callable[[Conversation, Shape], Row]:
    """What makes a row of a format of conversations. Raises Unfit for one that the format cannot hold."""
    return _ROWS[name]


def _openai_sft(it: Conversation, shape: Shape) -> Row:
    messages, foreign = it.messages, it.foreign
    check_calls(messages)
    for at in it.replies:
        messages[at]["weight"] = 0 if at in foreign else 1
    row: Row = {"messages": messages}
    if it.tools:
        row["tools"] = it.tools
        row["parallel_tool_calls"] = it.parallel
    return row


def _trl_sft(it: Conversation, shape: Shape) -> Row:
    messages = it.messages
    if shape.mark:
        marked(messages, it.foreign)
    return with_tools({"messages": messages}, it, messages)


def _trl_prompt_completion(it: Conversation, shape: Shape) -> Row:
    row = {"prompt": it.messages[:-1], "completion": it.messages[-1:]}
    return with_tools(row, it, it.messages)


def _sharegpt(it: Conversation, shape: Shape) -> Row:
    turns = []
    for at, message in enumerate(it.messages):
        content = message["content"]
        if type(content) is list:
            raise Unfit("pictures")
        turn: Row = {"from": _SHAREGPT[message["role"]], "value": "\n".join([*([content] if content else []), *_calls(message)])}
        if shape.mark and message["role"] == "assistant":
            turn["train"] = at not in it.foreign
        turns.append(turn)
    row: Row = {"conversations": turns}
    if it.tools:
        row["tools"] = orjson.dumps(it.tools).decode()
    return row


def _alpaca(it: Conversation, shape: Shape) -> Row:
    spoken = [message for message in it.messages if message["role"] != "system"]
    if [message["role"] for message in spoken] != ["user", "assistant"]:
        raise Unfit("more than one question and one answer")
    question, answer = spoken
    if type(question["content"]) is list:
        raise Unfit("pictures")
    if answer.get("tool_calls"):
        raise Unfit("tool calls")
    system = "\n\n".join(message["content"] for message in it.messages if message["role"] == "system")
    return {"instruction": question["content"], "input": "", "output": answer["content"], "system": system}


_ROWS: dict[str, Callable[[Conversation, Shape], Row]] = {
    "openai-sft": _openai_sft,
    "trl-sft": _trl_sft,
    "trl-prompt-completion": _trl_prompt_completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


def pair_row(name: str, chosen: Conversation, rejected: Conversation) -> Row:
    """A preferred and another reply to the same messages."""
    prompt = chosen.messages[:-1]
    if name == "openai-dpo":
        check_calls(chosen.messages)
        given: Row = {"messages": prompt}
        if chosen.tools:
            given.update(tools=chosen.tools, parallel_tool_calls=chosen.parallel)
        return {"input": given, "preferred_output": chosen.messages[-1:], "non_preferred_output": rejected.messages[-1:]}
    row = {"prompt": prompt, "chosen": chosen.messages[-1:], "rejected": rejected.messages[-1:]}
    return with_tools(row, chosen, [*chosen.messages, rejected.messages[-1]])


def rated_row(it: Conversation, label: bool) -> Row:
    """A reply that is good or not."""
    row: Row = {"prompt": it.messages[:-1], "completion": it.messages[-1:], "label": label}
    return with_tools(row, it, it.messages)


def with_tools(row: Row, it: Conversation, messages: list[Message]) -> Row:
    """TRL's further columns: `tools`, and `images` with a place holder where each was; then every content is a list."""
    if it.tools:
        row["tools"] = it.tools
    if any(type(message["content"]) is list for message in messages):
        images: list[str] = []
        for message in messages:
            content = message["content"]
            if type(content) is not list:
                message["content"] = [{"type": "text", "text": content or ""}]
                continue
            message["content"] = [{"type": "image"} if part["type"] == "image_url" else part for part in content]
            images.extend(part["image_url"]["url"] for part in content if part["type"] == "image_url")
        row["images"] = images
    return row


def marked(messages: list[Message], foreign: list[int]) -> None:
    """A `train` flag on every reply: false for those nobody of ours gave (Axolotl's `message_field_training`)."""
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            message["train"] = at not in foreign


def check_calls(messages: list[Message]) -> None:
    """OpenAI takes a conversation only when every call but the last message's is answered at once. Raises Unfit."""
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise Unfit("tool messages that answer no call")
            waiting.discard(message["tool_call_id"])
            continue
        if waiting:
            raise Unfit("tool calls without an answer")
        if "tool_calls" in message:
            waiting = {call["id"] for call in message["tool_calls"]}


def _calls(message: Message) -> list[str]:
    """Tool calls in a text, as Hermes and Qwen are taught them."""
    out = []
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        with suppress(orjson.JSONDecodeError):
            arguments = orjson.loads(arguments) if type(arguments) is str else arguments
        body = orjson.dumps({"name": call["function"]["name"], "arguments": arguments}).decode()
        out.append(f"<tool_call>\n{body}\n</tool_call>")
    return out
