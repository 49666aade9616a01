"""A mitmproxy content view, "LLM": requests and replies of inference endpoints, streamed ones too, as people read them.

It is a view only: the bytes stay as they are, and every other view (JSON, raw) can still be chosen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mitmproxy import contentviews, http

from llmtap.core.endpoints import Endpoint, canonical_path, endpoint_of
from llmtap.core.errors import WireError
from llmtap.core.record import Summary
from llmtap.wire.decode import decoder_for
from llmtap.wire.request import parse

#: more than what mitmproxy's own views give themselves (JSON: 1)
_PRIORITY = 2.0
_SHOWN = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "n", "stop", "tool_choice")


class TranscriptContentview(contentviews.Contentview):
    """Raises ValueError for what it cannot read; mitmproxy then shows the bytes."""

    name = "LLM"
    syntax_highlight = "none"

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:
        endpoint = _endpoint(metadata)
        if endpoint is None:
            raise ValueError("not a request of an inference endpoint")
        response = metadata.http_message
        if not isinstance(response, http.Response):
            try:
                return request_text(parse(endpoint.name, data).obj)
            except WireError as error:
                raise ValueError(str(error)) from None
        decoder = decoder_for(endpoint.name, response.headers.get("content-type", ""), response.status_code)
        if not decoder.understands:
            raise ValueError("not a format that is understood")
        try:
            decoder.feed(data)
            decoder.close()
        except WireError as error:
            return f"{reply_text(decoder.summary)}\n\n── not understood\n{error}"
        return reply_text(decoder.summary)

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:
        endpoint = _endpoint(metadata) if data else None
        return _PRIORITY if endpoint is not None and endpoint.generates else -1.0


def register() -> None:
    """Make the view known to mitmproxy, once a process."""
    if "llm" not in contentviews.registry:
        contentviews.registry.register(TranscriptContentview())


def _endpoint(metadata: contentviews.Metadata) -> Endpoint | None:
    if not isinstance(metadata.flow, http.HTTPFlow):
        return None
    path = canonical_path(metadata.flow.request.path)
    return endpoint_of(path) if path is not None else None


# ---- requests


def request_text(body: dict[str, Any]) -> str:
    """A request body of any of the dialects."""
    head = [f"model {body['model']}"] if "model" in body else []
    if body.get("stream"):
        head.append("stream")
    head += [f"{name} {_plain(body[name])}" for name in _SHOWN if body.get(name) is not None]
    blocks = [", ".join(head)] if head else []
    for name in ("system", "instructions"):
        if body.get(name):
            blocks.append(_block(name, _content(body[name])))
    for name in ("messages", "input"):
        value = body.get(name)
        if isinstance(value, list):
            blocks += [_message(item) for item in value]
        elif value is not None:
            blocks.append(_block("user", _content(value)))
    if body.get("prompt") is not None:
        blocks.append(_block("prompt", _content(body["prompt"])))
    tools = [_tool_name(tool) for tool in body["tools"]] if isinstance(body.get("tools"), list) else []
    if tools:
        blocks.append(_block("tools", ", ".join(tools)))
    return "\n\n".join(blocks)


def _message(message: Any) -> str:
    if not isinstance(message, dict):
        return _block("message", _plain(message))
    title = str(message.get("role") or message.get("type") or "message")
    for name in ("name", "tool_call_id", "call_id"):
        if message.get(name):
            title += f" {message[name]}"
    lines = []
    for name in ("reasoning_content", "reasoning", "content", "output"):
        if message.get(name):
            lines.append(_content(message[name]))
    for call in message["tool_calls"] if isinstance(message.get("tool_calls"), list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        lines.append(f"→ {function.get('name')}({function.get('arguments')})" if isinstance(function, dict) else _plain(call))
    if not lines:
        lines.append(_plain({k: v for k, v in message.items() if k != "role"}))
    return _block(title, "\n".join(lines))


def _content(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(_part(part) for part in value)
    return _plain(value)


def _part(part: Any) -> str:
    if isinstance(part, dict):
        if isinstance(part.get("text"), str):
            return str(part["text"])
        if part.get("type") == "tool_use":
            return f"→ {part.get('name')}({_plain(part.get('input'))})"
        if part.get("type") == "tool_result":
            return f"← {_content(part.get('content'))}"
    return _plain(part)


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, dict):
        return _plain(tool)
    function = tool.get("function")
    return str(tool.get("name") or (function.get("name") if isinstance(function, dict) else None) or tool.get("type"))


# ---- replies


def reply_text(summary: Summary) -> str:
    """What a reply came to, its deltas merged."""
    return "\n\n".join(_reply_blocks(summary))


def _reply_blocks(summary: Summary) -> Iterator[str]:
    usage = summary.usage
    head = [f"model {summary.model}"] if summary.model else []
    if usage.completion_tokens is not None:
        asked = f"{usage.prompt_tokens} prompt + " if usage.prompt_tokens is not None else ""
        head.append(f"{asked}{usage.completion_tokens} completion tokens")
    if not summary.complete and summary.error_type is None:
        head.append("not complete")
    if head:
        yield ", ".join(head)
    for choice in summary.choices:
        number = f" {choice.index}" if len(summary.choices) > 1 else ""
        if choice.reasoning:
            yield _block(f"reasoning{number}", choice.reasoning)
        lines = [text for text in (choice.content, choice.refusal) if text]
        lines += [f"→ {call.name}({call.arguments})" for call in choice.tool_calls]
        finish = f" ({choice.finish_reason})" if choice.finish_reason else ""
        yield _block(f"{choice.role}{number}{finish}", "\n".join(lines))
    if summary.error_type is not None:
        yield _block(f"error {summary.error_type}", summary.error_message or "")


def _block(title: str, text: str) -> str:
    return f"── {title}\n{text}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
