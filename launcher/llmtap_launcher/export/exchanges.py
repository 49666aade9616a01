"""Exchanges as they are stored: requests to send again (`batch`), and everything there is (`raw`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from llmtap_launcher.export.paths import Paths
from llmtap_launcher.export.stored import Bodies, as_message, rows
from llmtap_launcher.store.request_of import replay_path, request_of

Row = dict[str, Any]

#: names of ours, of no use outside the database
_INSIDE = frozenset({"boot", "loose_tip", "loose_input", "started_us"})
_JSON = {"tags": "tags", "metadata_json": "metadata", "params_json": "params", "response_meta_json": "response_meta"}
#: what a request of a batch cannot say
_STREAMING = ("stream", "stream_options")


def selected(conn: sqlite3.Connection, where: str, values: Mapping[str, Any]) -> Iterator[int]:
    """Ids of the exchanges of the condition `where` (over `exchanges e`), newest first."""
    cursor = conn.cursor()
    cursor.row_factory = None
    for (ident,) in cursor.execute(f"SELECT e.id FROM exchanges e WHERE {where} ORDER BY e.started_at DESC, e.id DESC", values):
        yield ident


def batch_row(conn: sqlite3.Connection, exchange: int) -> Row | None:
    """The request as a line of a batch; None when its messages are not stored."""
    row = conn.execute("SELECT uid, endpoint FROM exchanges WHERE id = ?", (exchange,)).fetchone()
    body = request_of(conn, row["uid"])
    if body is None:
        return None
    body = {key: value for key, value in body.items() if key not in _STREAMING}
    return {"custom_id": row["uid"], "method": "POST", "url": replay_path(row), "body": body}


class Raw:
    """Rows with all there is of exchanges."""

    def __init__(self, conn: sqlite3.Connection, paths: Paths) -> None:
        self._conn = conn
        self._paths = paths
        self._bodies = Bodies(conn, whole=True)
        self._columns = [row[1] for row in conn.execute("PRAGMA table_xinfo(exchanges)").fetchall() if row[1] not in _INSIDE]

    def of(self, exchanges: Sequence[int]) -> Iterator[Row]:
        """One for each, in their order."""
        ids = sorted(exchanges)
        found = {row[0]: row for row in rows(self._conn, ", ".join(["id", *self._columns]), "exchanges", "id", ids)}
        ratings = self._ratings(ids)
        for exchange in exchanges:
            values = dict(zip(self._columns, found[exchange][1:], strict=True))
            yield self._row(values) | {"ratings": ratings.get(exchange, [])}

    def _row(self, values: Row) -> Row:
        out: Row = {_JSON.get(key, key): value for key, value in values.items() if type(value) is not bytes and key not in _TIPS}
        for column, name in _JSON.items():
            out[name] = orjson.loads(values[column]) if values[column] else None
        out["messages"] = self._messages(values["input_tip"])
        tips = (out["response_meta"] or {}).pop("output_tips", None)
        tips = [bytes.fromhex(tip) for tip in tips] if tips else [values["output_tip"]]
        out["choices"] = [said for tip in tips if tip is not None for said in self._messages(tip)[-1:]]
        out["tools"] = None
        if values["tools_hash"] is not None:
            row = self._conn.execute("SELECT json FROM bodies WHERE hash = ?", (values["tools_hash"],)).fetchone()
            out["tools"] = orjson.loads(row[0]) if row is not None else None
        return out

    def _messages(self, tip: bytes | None) -> list[Row]:
        if tip is None:
            return []
        row = self._conn.execute("SELECT id FROM messages WHERE hash = ?", (tip,)).fetchone()
        if row is None:
            return []
        _, bodies = self._paths.to(row[0])
        stored = self._bodies.load(bodies)
        return [as_message(stored[body]) for body in bodies if body in stored]

    def _ratings(self, exchanges: list[int]) -> dict[int, list[Row]]:
        out: dict[int, list[Row]] = {}
        names = ("name", "value", "string_value", "source", "comment", "at")
        for exchange, correction, *values in rows(
            self._conn, f"exchange_id, correction, {', '.join(names)}", "ratings", "exchange_id", exchanges
        ):
            one = dict(zip(names, values, strict=True))
            corrected = self._messages(correction)
            out.setdefault(exchange, []).append(one | {"correction": corrected[-1] if corrected else None})
        return out


_TIPS = frozenset({"input_tip", "output_tip", "tools_hash"})
