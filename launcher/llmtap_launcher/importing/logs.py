"""Lines of JSON logs as exchanges: request logs of in-process middleware, LiteLLM's, and results of OpenAI batches.

The shapes tell themselves apart by their keys. LiteLLM's are its `StandardLoggingPayload` (what its bucket and custom loggers
write) and its `LiteLLM_SpendLogs` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

from llmtap_launcher.importing.entries import Entry, Malformed, dumped, moment

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

#: requests of a batch by their `custom_id`
Requests = dict[str, dict[str, Any]]


def is_batch_request(line: Any) -> bool:
    """Whether it is a line of the input of a batch: to be matched with its result."""
    return type(line) is dict and type(line.get("custom_id")) is str and type(line.get("body")) is dict and "url" in line


def entry_of(line: Any, requests: Requests) -> Entry:
    """The exchange of one line. Raises Malformed."""
    if type(line) is not dict:
        raise Malformed("not a JSON object")
    if "custom_id" in line and ("response" in line or "error" in line):
        return _batch(line, requests)
    if "startTime" in line:
        return _litellm(line)
    if "messages" in line and ("response" in line or "error" in line):
        return _log(line)
    raise Malformed("not a line of a log that is known")


# ---- request logs: timestamp, request_id, model, messages, response, parameters, latency_ms, error, metadata


def _log(line: dict[str, Any]) -> Entry:
    parameters = _object(line.get("parameters"))
    path, body = _request(line.get("messages"), line.get("response"), {"model": line.get("model"), **parameters})
    error = line.get("error")
    metadata = _object(line.get("metadata"))
    return Entry(
        identity=f"log {line.get('request_id') or _hash(line)} {line.get('timestamp')}",
        at_us=moment(line.get("timestamp")),
        path=path,
        body=dumped(body),
        reply=_reply(line.get("response")),
        status=None if error else 200,
        error=_words(error),
        request_id=_text(line.get("request_id")),
        duration_ms=_number(line.get("latency_ms")),
        metadata=metadata,
    )


# ---- LiteLLM


def _litellm(line: dict[str, Any]) -> Entry:
    start = moment(line["startTime"])
    end = _moment(line.get("endTime"))
    first = _moment(line.get("completionStartTime"))
    parameters = _object(line.get("model_parameters"))
    metadata = _object(line.get("metadata"))
    kind = str(line.get("call_type") or "")
    sent = _object(_object(line.get("proxy_server_request")).get("body")) or _object(line.get("proxy_server_request"))
    said = _loaded(line.get("messages")) or sent.get("messages")
    response = _loaded(line.get("response"))
    if "embedding" in kind:
        path, body = EMBEDDINGS, {"model": line.get("model"), "input": said or sent.get("input") or ""}
    else:
        parameters = {**{k: v for k, v in sent.items() if k not in ("messages", "prompt")}, **parameters}
        given = {**parameters, "model": line.get("model_group") or line.get("model")}
        path, body = _request(said, response, given, text="text_completion" in kind)
    failed = line.get("status") == "failure" or bool(line.get("error_str"))
    information = _object(line.get("error_information") or metadata.get("error_information"))
    error = _words(line.get("error_str") or information.get("error_message") or ("failed" if failed else None))
    tags = _loaded(line.get("request_tags"))
    ident = line.get("id") or line.get("request_id") or _hash(line)
    streamed = bool(line.get("stream") or parameters.get("stream"))
    return Entry(
        identity=f"litellm {ident}",
        at_us=start,
        path=path,
        body=dumped(body),
        reply=b"" if failed else _reply(response),
        status=_int(information.get("error_code")) if failed else 200,
        error=error if failed else None,
        request_id=str(ident),
        duration_ms=None if end is None else max(0, end - start) / 1000,
        ttft_ms=max(0, first - start) / 1000 if streamed and first is not None else None,
        key_name=_text(metadata.get("user_api_key_alias")),
        client_ip=_text(line.get("requester_ip_address")),
        session_hint=_text(line.get("session_id") or line.get("trace_id")),
        backend=_text(line.get("api_base")) or None,
        cached=line.get("cache_hit") in (True, "True", "true"),
        tags=[tag for tag in tags if type(tag) is str] if type(tags) is list else [],
        metadata={"end_user": line["end_user"]} if line.get("end_user") else {},
    )


# ---- batches


def _batch(line: dict[str, Any], requests: Requests) -> Entry:
    custom = line["custom_id"]
    request = requests.get(custom)
    if request is None:
        raise Malformed("a batch's result without its request: name the batch's input file too")
    response = _object(line.get("response"))
    body = response.get("body")
    error = _object(line.get("error"))
    created = body.get("created") if type(body) is dict else None
    ident = line.get("id") or response.get("request_id") or _hash(line)
    return Entry(
        identity=f"batch {ident} {custom}",
        at_us=moment(created if created is not None else line.get("created_at", 1)),
        path=str(request.get("url") or CHAT),
        body=dumped(request["body"]),
        reply=_reply(body),
        status=_int(response.get("status_code")),
        error=_words(error.get("message")) if error else None,
        request_id=custom,
        metadata={"batch": str(ident)},
    )


# ---- what they share


def _request(said: Any, response: Any, parameters: Mapping[str, Any], *, text: bool = False) -> tuple[str, dict[str, Any]]:
    """Path and body of the request. Prompts are strings, or the one message of a text completion."""
    parameters = {key: value for key, value in parameters.items() if value is not None}
    if type(response) is dict and response.get("object") == "text_completion":
        text = True
    if type(said) is list and said and all(type(one) is str for one in said):
        said, text = said[0] if len(said) == 1 else said, True
    elif type(said) is str:
        text = True
    if text:
        if type(said) is list and len(said) == 1 and type(said[0]) is dict:
            said = said[0].get("content")
        return COMPLETIONS, {**parameters, "prompt": said}
    if type(said) is not list or not all(type(message) is dict for message in said):
        raise Malformed("messages that are none")
    return CHAT, {**parameters, "messages": said}


def _reply(response: Any) -> bytes:
    response = _loaded(response)
    if response is None or response == "":
        return b""
    if type(response) is str:
        response = {"choices": [{"index": 0, "message": {"role": "assistant", "content": response}, "finish_reason": "stop"}]}
    return dumped(response)


def _loaded(value: Any) -> Any:
    """JSON in a string is what it says (columns of exported tables)."""
    if type(value) is str and value[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _object(value: Any) -> dict[str, Any]:
    value = _loaded(value)
    return value if type(value) is dict else {}


def _moment(value: Any) -> int | None:
    try:
        return moment(value)
    except Malformed:
        return None


def _words(value: Any) -> str | None:
    if value is None or value == "" or value is False:
        return None
    return value if type(value) is str else dumped(value).decode()


def _text(value: Any) -> str | None:
    return value if type(value) is str and value else None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value >= 0 else None


def _int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _hash(line: Any) -> str:
    return blake2b(dumped(line), digest_size=16).hexdigest()
