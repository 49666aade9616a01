"""Rows as Parquet, through pyarrow (the extra `llmtap[parquet]`).

Parquet has one type for a column. What differs from row to row is text there: arguments and definitions of tools, bodies of
requests are JSON in a string, as TRL and `datasets` read it too. Contents are strings, or lists of parts when the rows have
pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export.output import Placed, Written, hash_of

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 2000

#: columns of `raw` that are JSON
_JSON_COLUMNS = ("tags", "metadata", "params", "response_meta", "messages", "choices", "tools", "ratings")


class NeedsParts(Exception):
    """A content that is a list came where contents are strings: begin again with `parts`."""


class Table:
    """A Parquet file of one format. `parts`: contents are lists of parts."""

    def __init__(self, path: Path, name: str, *, parts: bool = False) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise LlmtapError("--parquet needs pyarrow: pip install 'llmtap[parquet]'") from error
        self._parts = parts
        self._name = name
        self._schema = schema(name, parts=parts)
        self._placed = Placed(path)
        self._writer = parquet.ParquetWriter(self._placed.file, self._schema, compression="zstd")
        self._waiting: list[dict[str, Any]] = []
        self._rows = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row. Raises NeedsParts."""
        self._waiting.append(self._flat(row))
        self._rows += 1
        if len(self._waiting) >= _ROWS:
            self._flush()

    def finish(self) -> Written:
        """The file is there."""
        self._flush()
        self._writer.close()
        self._placed.place()
        digest, size = hash_of(self._placed.path)
        return Written(str(self._placed.path), self._rows, size, digest)

    def abandon(self) -> None:
        """It never was."""
        self._writer.is_open = False  # its end would need the file
        self._placed.abandon()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting = []

    def _flat(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self._name == "batch":
            return {**row, "body": _json(row["body"])}
        if self._name == "raw":
            return {**row, **{name: _json(row[name]) for name in _JSON_COLUMNS}}
        return {key: self._value(key, value) for key, value in row.items()}

    def _value(self, key: str, value: Any) -> Any:
        if key == "tools":
            return value if type(value) is str else _json(value)
        if key == "input" and type(value) is dict:
            return {name: self._value(name, inner) for name, inner in value.items()}
        if type(value) is list and value and type(value[0]) is dict and "role" in value[0]:
            return [self._message(message) for message in value]
        return value

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(message)
        content = out["content"]
        if self._parts:
            out["content"] = [{"type": "text", "text": content}] if type(content) is str else content
        elif type(content) is list:
            raise NeedsParts
        if calls := out.get("tool_calls"):
            out["tool_calls"] = [_call(call) for call in calls]
        return out


def schema(name: str, *, parts: bool) -> pa.Schema:
    """The columns of a format."""
    import pyarrow as pa

    text, flag = pa.string(), pa.bool_()
    url = pa.struct({"url": text, "detail": text})
    content = pa.list_(pa.struct({"type": text, "text": text, "image_url": url})) if parts else text
    call = pa.struct({"id": text, "type": text, "function": pa.struct({"name": text, "arguments": text})})
    message = {"role": text, "content": content, "tool_calls": pa.list_(call), "tool_call_id": text, "name": text}
    more: dict[str, Any] = {"weight": pa.int8()} if name == "openai-sft" else {"reasoning_content": text, "train": flag}
    messages = pa.list_(pa.struct(message | (more if name not in ("openai-dpo",) else {})))
    tail: dict[str, Any] = {"tools": text} | ({"images": pa.list_(text)} if parts else {})
    columns: dict[str, dict[str, Any]] = {
        "openai-sft": {"messages": messages, "tools": text, "parallel_tool_calls": flag},
        "openai-dpo": {
            "input": pa.struct({"messages": messages, "tools": text, "parallel_tool_calls": flag}),
            "preferred_output": messages,
            "non_preferred_output": messages,
        },
        "trl-sft": {"messages": messages} | tail,
        "trl-prompt-completion": {"prompt": messages, "completion": messages} | tail,
        "trl-preference": {"prompt": messages, "chosen": messages, "rejected": messages} | tail,
        "trl-kto": {"prompt": messages, "completion": messages, "label": flag} | tail,
        "sharegpt": {"conversations": pa.list_(pa.struct({"from": text, "value": text, "train": flag})), "tools": text},
        "alpaca": dict.fromkeys(("instruction", "input", "output", "system"), text),
        "batch": dict.fromkeys(("custom_id", "method", "url", "body"), text),
        "raw": _raw(),
    }
    return pa.schema(columns[name])


_INTEGERS = (
    "attempts stream status max_tokens seed n prompt_tokens completion_tokens cached_tokens reasoning_tokens chunks "
    "request_bytes "
    "response_bytes cost_nanousd price_id n_messages conversation_id"
).split()
_REALS = ("temperature top_p queue_ms ttft_ms duration_ms overhead_ms itl_p50_ms itl_p95_ms itl_max_ms tokens_per_second").split()
_TEXTS = (
    "uid started_at worker key_name client_ip user_agent session_hint method path endpoint model_requested model_response model "
    "backend cache outcome error_type error_message finish_reason response_id usage_source request_id"
).split()


def _raw() -> dict[str, Any]:
    import pyarrow as pa

    return (
        dict.fromkeys(_TEXTS, pa.string())
        | {"id": pa.int64()}
        | dict.fromkeys(_INTEGERS, pa.int64())
        | dict.fromkeys(_REALS, pa.float64())
        | dict.fromkeys(_JSON_COLUMNS, pa.string())
    )


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _json(function["arguments"])}}


def _json(value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    return orjson.dumps(value).decode()
