"""What is wanted as one SQL condition over `exchanges e`."""

from __future__ import annotations

import sqlite3
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export import ratings
from llmtap_launcher.export.options import Wanted


def where(conn: sqlite3.Connection, wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """The condition and its named parameters. Raises LlmtapError for a rating or a query that cannot be understood."""
    parts: list[str] = []
    values: dict[str, Any] = {}
    for column, names in (("outcome", wanted.outcomes), ("finish_reason", wanted.finish_reasons), ("endpoint", wanted.endpoints)):
        if names:
            parts.append(_one_of(column, names, values))
    if not wanted.selection.everything:
        sql, more = wanted.selection.where("e")
        parts.append(sql)
        values.update(more)
    total = "coalesce(e.prompt_tokens, 0) + coalesce(e.completion_tokens, 0)"
    if wanted.min_tokens is not None:
        parts.append(f"{total} >= :min_tokens")
        values["min_tokens"] = wanted.min_tokens
    if wanted.max_tokens is not None:
        parts.append(f"{total} <= :max_tokens")
        values["max_tokens"] = wanted.max_tokens
    for number, condition in enumerate(wanted.ratings):
        sql, more = ratings.where(condition, f"rating{number}")
        parts.append(sql)
        values.update(more)
    if wanted.sql is not None:
        parts.append(_subquery(conn, wanted.sql))
    return " AND ".join(parts) or "1", values


def _one_of(column: str, names: Any, values: dict[str, Any]) -> str:
    keys = [f"{column}{number}" for number in range(len(names))]
    values.update(zip(keys, names, strict=True))
    return f"e.{column} IN ({', '.join(f':{key}' for key in keys)})"


def _subquery(conn: sqlite3.Connection, sql: str) -> str:
    """A query of the user's, whose column `id` or `uid` (or the first of its kind: `exchange_id`) names exchanges."""
    query = sql.strip().rstrip(";")
    try:
        columns = [column[0] for column in conn.execute(f"SELECT * FROM ({query}) LIMIT 0").description]
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise LlmtapError(f"--sql: {error}") from error
    for name, column in (("id", "id"), ("exchange_id", "id"), ("uid", "uid")):
        if name in columns:
            return f"e.{column} IN (SELECT {name} FROM ({query}))"
    raise LlmtapError(f"--sql: it gives {', '.join(columns)}, but not id or uid of exchanges: SELECT id FROM exchanges WHERE …")
