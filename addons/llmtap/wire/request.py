"""What a request body asks for, and the one change made to it: asking for usage on streams.

The body stays bytes: it is parsed once to be understood, and forwarded as it came. Messages of errors never contain a
piece of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from llmtap.core.errors import WireError
from llmtap.wire.jsonload import loads
from llmtap.wire.values import integer, number, string

#: streams unless told otherwise
_STREAMS_BY_DEFAULT = frozenset({"ollama_chat", "ollama_generate"})
#: where `stream_options` exists (vLLM answers 400 to it without `stream: true`)
_STREAM_OPTIONS = frozenset({"chat", "completions"})
_EMPTY = re.compile(rb"[ \t\r\n]*\}")
_INCLUDE = b'"stream_options":{"include_usage":true}'


@dataclass(slots=True)
class ParsedRequest:
    """A request body, understood. Parameters that are missing, null or not of their type are None: the engine will say so.

    `exact`: the bytes are strict UTF-8 JSON and may be embedded in other JSON as they are. `wants_usage`: the client asked
    for the usage chunk itself, or said something about it that only the engine can judge.
    """

    endpoint: str
    obj: dict[str, Any]
    exact: bool
    model: str | None = None
    stream: bool = False
    wants_usage: bool = False

    # read when somebody asks: a gateway that only passes a request on does not

    @property
    def _sampling(self) -> dict[str, Any]:
        options = self.obj.get("options") if self.endpoint.startswith("ollama_") else None
        return options if type(options) is dict else self.obj

    @property
    def temperature(self) -> float | None:
        return number(self._sampling.get("temperature"))

    @property
    def top_p(self) -> float | None:
        return number(self._sampling.get("top_p"))

    @property
    def max_tokens(self) -> int | None:
        return _max_tokens(self.obj, self._sampling)

    @property
    def seed(self) -> int | None:
        return _signed(self._sampling.get("seed"))

    @property
    def n(self) -> int | None:
        return integer(self.obj.get("n"))

    @property
    def n_messages(self) -> int | None:
        return _n_messages(self.obj)


def parse(endpoint: str, body: bytes) -> ParsedRequest:
    """Reads the body of a request to `endpoint`. Raises WireError for what no engine could read."""
    if not body or body.isspace():
        raise WireError("the request body is empty: a JSON object is expected")
    try:
        obj, exact = loads(body)
    except WireError as error:
        raise WireError(f"the request body is not JSON: {error}") from None
    if type(obj) is not dict:
        raise WireError("the request body must be a JSON object")
    model = obj.get("model")
    if model is None and endpoint == "ollama_show":
        model = obj.get("name")  # its old name, which Ollama still takes
    if model is not None and type(model) is not str:
        raise WireError("`model` must be a string")
    stream = obj.get("stream")
    if stream is None:
        stream = endpoint in _STREAMS_BY_DEFAULT
    elif type(stream) is not bool:
        raise WireError("`stream` must be true or false")
    return ParsedRequest(endpoint, obj, exact, string(model) or None, stream, _wants_usage(obj.get("stream_options")))


def _wants_usage(options: Any) -> bool:
    if options is None:
        return False
    if type(options) is not dict:
        return True  # not ours to repair
    include = options.get("include_usage")
    return include is not None and include is not False


def _max_tokens(obj: dict[str, Any], sampling: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = integer(obj.get(name))
        if value is not None:
            return value
    return integer(sampling.get("num_predict"))  # Ollama; -1 there means no limit


def _signed(value: Any) -> int | None:
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _n_messages(obj: dict[str, Any]) -> int | None:
    messages = obj.get("messages")
    if type(messages) is list:
        return len(messages)
    for name in ("input", "prompt"):
        value = obj.get(name)
        if type(value) is str:
            return 1
        if type(value) is list:
            # a list of token ids is one prompt
            return 1 if value and all(type(item) is int for item in value) else len(value)
    return None


def inject_usage(parsed: ParsedRequest, body: bytes) -> bytes:
    """The body with `stream_options.include_usage` true, for a chat or completions stream whose client did not ask.

    Without `stream_options` the member is spliced in after the first brace and every other byte stays. Where the client
    turned usage off, or gave null, the object is written anew; `continuous_usage_stats`, which counts only together with
    `include_usage`, is then turned off, as it was in effect. In every other case the very same bytes come back.
    """
    if parsed.endpoint not in _STREAM_OPTIONS or not parsed.stream or parsed.wants_usage:
        return body
    if parsed.exact and "stream_options" not in parsed.obj:
        return _splice(body, _INCLUDE)
    # the standard library keeps what orjson would not: integers of any size, NaN, lone surrogates
    try:
        obj = json.loads(body.decode("utf-8-sig"))
        options = dict(obj.get("stream_options") or {})
        options["include_usage"] = True
        if options.get("continuous_usage_stats"):
            options["continuous_usage_stats"] = False
        obj["stream_options"] = options
        return json.dumps(obj, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # nested deeper than it follows: better no usage than no answer
        return body


def _splice(body: bytes, member: bytes) -> bytes:
    """The JSON object in `body` with `member` put first."""
    start = body.index(b"{") + 1
    comma = b"" if _EMPTY.match(body, start) else b","
    return body[:start] + member + comma + body[start:]
