"""What a recording says, read the naive way: whole body at once, split on blank lines, one loop a format.

Shares no code with `llmtap.wire` on purpose: it wrote `fixtures/recordings/expectations.json`, which the decoders are
held against. `PYTHONPATH=tests python tests/support/naive.py` adds expectations for recordings that have none yet;
read them before committing.
"""

from __future__ import annotations

import json
from typing import Any

from support import recordings
from support.recordings import Recording

EXPECTATIONS = recordings.ROOT / "expectations.json"
ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat_batch",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
    "/pooling": "pooling",
    "/classify": "classify",
    "/score": "score",
    "/v1/score": "score",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/v1/models": "models",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/version": "version",
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
    "/api/embed": "ollama_embed",
    "/api/embeddings": "ollama_embeddings",
}
#: recordings made without keeping the request
UNKEPT = {
    "engine_killed_completions": "completions",
    "engine_killed_messages": "messages",
    "engine_killed_mid_nonstream": "chat",
    "engine_killed_mid_stream": "chat",
    "engine_killed_responses": "responses",
    "sigterm_mid_stream": "chat",
    "sigterm_drain_stream": "chat",
}
STOPS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def read(recording: Recording) -> dict[str, Any]:
    """The expectation of one recording. Token counts are (prompt, completion, cached, reasoning)."""
    endpoint = ENDPOINTS.get(recording.path) or UNKEPT.get(recording.name.split("/")[1], "other")
    kind = recording.content_type.split(";")[0]
    out: dict[str, Any] = {
        "endpoint": endpoint,
        "status": recording.status,
        "content_type": kind,
        "whole_http": recording.complete,
        "understood": True,
        "content_events": 0,
        "complete": False,
        "response_id": None,
        "model": None,
        "choices": [],
        "usage": [None, None, None, None],
        "usage_source": "none",
        "error_type": None,
        "error_message": None,
        "meta": [],
    }
    text = recording.body.decode("utf-8", "replace")
    if recording.status >= 400:
        _error(out, text)
    elif endpoint in ("chat", "chat_batch", "completions") and kind == "text/event-stream":
        _chat(out, [block[6:] for block in text.split("\n\n") if block.startswith("data: ")], endpoint)
    elif endpoint in ("chat", "chat_batch", "completions"):
        _chat(out, [text, "[DONE]"], endpoint)
    elif endpoint == "responses":
        _responses(out, text, kind)
    elif endpoint == "messages":
        _messages(out, text, kind)
    elif endpoint.startswith("ollama"):
        _ollama(out, [json.loads(line) for line in text.splitlines() if line], endpoint)
    elif endpoint in ("tokenize", "detokenize", "count_tokens"):
        out["complete"] = True
        out["meta"] = [name for name in ("count", "input_tokens", "max_model_len") if name in json.loads(text)]
    elif endpoint in ("embeddings", "pooling", "classify", "score", "rerank"):
        _numbers(out, recording)
    elif recording.path == "/completion":
        _native(out, [text] if kind == "application/json" else [block[6:] for block in text.split("\n\n") if block])
    elif kind == "text/event-stream" and '"object":"chat.completion.chunk"' in text:  # at a path nobody knows
        _chat(out, [block[6:] for block in text.split("\n\n") if block.startswith("data: ")], "chat")
    else:
        out["understood"] = False
    if out["usage_source"] == "none" and out["content_events"] and kind != "application/json":
        out["usage"][1] = out.pop("_ids", 0) or out["content_events"]
        out["usage_source"] = "estimated"
    out.pop("_ids", None)
    out["meta"] = sorted(set(out["meta"]))
    return out


def _native(out: dict[str, Any], payloads: list[str]) -> None:
    events = [json.loads(payload) for payload in payloads]
    last = events[-1]
    content = "".join(event["content"] for event in events)
    out["choices"] = [_choice(content=content, finish_reason={"limit": "length", "eos": "stop"}[last["stop_type"]])]
    out["content_events"] = sum(bool(event["content"]) for event in events)
    out["usage"] = [last["tokens_evaluated"], last["tokens_predicted"], last["timings"]["cache_n"], None]
    out["usage_source"], out["complete"], out["model"], out["meta"] = "upstream", True, last["model"], ["timings"]


def _numbers(out: dict[str, Any], recording: Recording) -> None:
    reply = recording.headers.get("metadata") or recording.body.decode("utf-8", "replace")
    if not reply.startswith("{"):
        out["understood"] = False
        return
    body = json.loads(reply)
    out["complete"] = True
    out["response_id"], out["model"] = body["id"], body["model"]
    if "usage" in body:
        out["usage"] = [body["usage"]["prompt_tokens"], body["usage"].get("completion_tokens"), None, None]
        out["usage_source"] = "upstream"


def _choice(index: int = 0, **more: Any) -> dict[str, Any]:
    base = {"index": index, "role": "assistant", "content": None, "reasoning": None, "finish_reason": None, "tool_calls": []}
    return {**base, **more}


def _call(id: Any, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "name": name, "arguments": arguments}


def _error(out: dict[str, Any], text: str) -> None:
    out["complete"] = True
    out["error_type"] = f"http_{out['status']}"
    try:
        body = json.loads(text)
    except ValueError:
        out["error_message"] = text
        return
    error = body.get("error", body.get("detail"))
    if isinstance(error, str) and error.startswith("{"):
        error = json.loads(error)["error"]
    if isinstance(error, dict):
        out["error_type"] = error["type"]
        error = error["message"]
    out["error_message"] = error


def _chat(out: dict[str, Any], payloads: list[str], endpoint: str) -> None:
    choices: dict[int, dict[str, Any]] = {}
    out["_ids"] = 0
    for payload in payloads:
        if payload == "[DONE]":
            out["complete"] = True
            continue
        chunk = json.loads(payload)
        if "error" in chunk:
            out["error_type"], out["error_message"] = chunk["error"]["type"], chunk["error"]["message"]
            continue
        out["response_id"], out["model"] = chunk["id"], chunk["model"]
        out["meta"] += [
            name for name in ("system_fingerprint", "metrics", "service_tier", "timings") if chunk.get(name) is not None
        ]
        said = False
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], _choice(piece["index"], content="", reasoning=""))
            delta = piece.get("delta") or piece.get("message") or {"content": piece.get("text")}
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning") or delta.get("reasoning_content") or ""
            for fragment in delta.get("tool_calls", []):
                at = fragment.get("index", len(choice["tool_calls"]))
                if at == len(choice["tool_calls"]):
                    choice["tool_calls"].append(_call(fragment["id"], fragment["function"]["name"], ""))
                choice["tool_calls"][at]["arguments"] += fragment["function"].get("arguments", "")
                said = True
            said = said or bool(delta.get("content") or delta.get("reasoning") or delta.get("reasoning_content"))
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
            out["meta"] += ["stop_reason"] if piece.get("stop_reason") else []
            out["_ids"] += len(piece.get("token_ids") or [])
        out["content_events"] += said
        usage = chunk.get("usage")
        if usage and usage["total_tokens"]:
            details = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
            out["usage"] = [
                usage["prompt_tokens"],
                usage["completion_tokens"],
                details[0].get("cached_tokens"),
                details[1].get("reasoning_tokens"),
            ]
            out["usage_source"] = "upstream"
    # transformers never says [DONE]
    finished = choices and all(choice["finish_reason"] for choice in choices.values()) and not out["error_type"]
    out["complete"] = out["complete"] or bool(finished)
    timings = chunk.get("timings") if out["usage_source"] == "none" and len(choices) == 1 and payloads[-1] == "[DONE]" else None
    if timings:
        cached = timings["cache_n"]
        out["usage"] = [timings["prompt_n"] + cached, timings["predicted_n"], cached, None]
        out["usage_source"] = "upstream"
    for choice in choices.values():
        choice["content"] = choice["content"] if endpoint == "completions" else choice["content"] or None
        choice["reasoning"] = choice["reasoning"] or None
    out["choices"] = [choices[index] for index in sorted(choices)]


def _events(text: str) -> list[dict[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block]
    return [json.loads(line[6:]) for block in blocks for line in block.split("\n") if line.startswith("data: ")]


def _responses(out: dict[str, Any], text: str, kind: str) -> None:
    choice = _choice(content="", reasoning="")
    if kind == "application/json":
        response = json.loads(text)
        for item in response["output"]:
            if item["type"] == "message":
                choice["content"] += "".join(part["text"] for part in item["content"])
            if item["type"] == "reasoning":
                choice["reasoning"] += "".join(part["text"] for part in item["content"])
        out["content_events"] = 1
    else:
        response = {}
        for event in _events(text):  # the deltas only; what the last event repeats must agree
            response = event.get("response", response)
            if event["type"].endswith(".delta"):
                out["content_events"] += 1
                if event["type"] == "response.output_text.delta":
                    choice["content"] += event["delta"]
                if event["type"] == "response.reasoning_text.delta":
                    choice["reasoning"] += event["delta"]
                if event["type"] == "response.function_call_arguments.delta":
                    choice["tool_calls"][-1]["arguments"] += event["delta"]
            if event["type"] == "response.output_item.added" and event["item"]["type"] == "function_call":
                choice["tool_calls"].append(_call(event["item"]["call_id"], event["item"]["name"], ""))
                out["content_events"] += 1
    out["response_id"], out["model"] = response["id"], response["model"]
    out["meta"] += [name for name in ("service_tier", "metrics") if response.get(name)]
    if response["status"] != "in_progress":
        out["complete"] = True
        out["meta"].append("status")
        choice["finish_reason"] = "tool_calls" if choice["tool_calls"] else "stop"
        if response["status"] == "incomplete":
            choice["finish_reason"] = {"max_output_tokens": "length"}[response["incomplete_details"]["reason"]]
        usage = response["usage"]
        out["usage"] = [
            usage["input_tokens"],
            usage["output_tokens"],
            usage.get("input_tokens_details", {}).get("cached_tokens"),
            usage.get("output_tokens_details", {}).get("reasoning_tokens"),
        ]
        out["usage_source"] = "upstream"
    choice["content"], choice["reasoning"] = choice["content"] or None, choice["reasoning"] or None
    out["choices"] = [choice]


def _messages(out: dict[str, Any], text: str, kind: str) -> None:
    choice = _choice(content="", reasoning="")
    usage: dict[str, int] = {}
    stop = None
    if kind == "application/json":
        message = json.loads(text)
        usage, stop = message["usage"], message["stop_reason"]
        for block in message["content"]:
            choice["content"] += block.get("text", "")
            choice["reasoning"] += block.get("thinking", "")
        out["complete"], out["content_events"] = True, 1
        out["usage_source"] = "upstream"
    else:
        message = {}
        for event in _events(text):
            if event["type"] == "message_start":
                message = event["message"]
                usage.update(message["usage"])
            elif event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                choice["tool_calls"].append(_call(event["content_block"]["id"], event["content_block"]["name"], ""))
                out["content_events"] += 1
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                choice["content"] += delta.get("text", "")
                choice["reasoning"] += delta.get("thinking", "")
                if "partial_json" in delta:
                    choice["tool_calls"][-1]["arguments"] += delta["partial_json"]
                out["content_events"] += bool(delta.get("text") or delta.get("thinking") or delta.get("partial_json"))
            elif event["type"] == "message_delta":
                stop = event["delta"]["stop_reason"]
                usage.update(event["usage"])
                out["usage_source"] = "upstream"
            elif event["type"] == "message_stop":
                out["complete"] = True
            elif event["type"] == "error":
                out["error_type"], out["error_message"] = event["error"]["type"], event["error"]["message"]
    cached = usage.get("cache_read_input_tokens")
    out["usage"] = [usage["input_tokens"] + (cached or 0), usage["output_tokens"], cached, None]
    out["response_id"], out["model"] = message["id"], message["model"]
    choice["finish_reason"] = STOPS.get(stop or "")
    out["meta"] += ["stop_reason"] if stop else []
    choice["content"], choice["reasoning"] = choice["content"] or None, choice["reasoning"] or None
    out["choices"] = [choice]


def _ollama(out: dict[str, Any], lines: list[dict[str, Any]], endpoint: str) -> None:
    choice = _choice(content="", reasoning="")
    for line in lines:
        message = line.get("message", line)
        text = message.get("content", message.get("response", ""))
        choice["content"] += text
        choice["reasoning"] += message.get("thinking", "")
        for call in message.get("tool_calls", []):
            arguments = json.dumps(call["function"]["arguments"], separators=(",", ":"))
            choice["tool_calls"].append(_call(call["id"], call["function"]["name"], arguments))
        out["content_events"] += bool(text or message.get("thinking") or message.get("tool_calls"))
        out["model"] = line["model"]
        if line["done"]:
            out["complete"] = True
            choice["finish_reason"] = line["done_reason"]
            out["meta"] += [name for name in line if name.endswith("_duration")]
            if "eval_count" in line:
                out["usage"] = [line["prompt_eval_count"], line["eval_count"], None, None]
                out["usage_source"] = "upstream"
    if endpoint == "ollama_chat":
        choice["content"] = choice["content"] or None
    choice["reasoning"] = choice["reasoning"] or None
    out["choices"] = [choice]


def main() -> None:
    known = json.loads(EXPECTATIONS.read_text(encoding="utf-8")) if EXPECTATIONS.exists() else {}
    new = [name for name in recordings.names() if name not in known]
    for name in new:
        known[name] = read(recordings.load(name))
    EXPECTATIONS.write_text(json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(new)} new, {len(known)} in all")


if __name__ == "__main__":
    main()
