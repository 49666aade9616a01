"""A checksum a table, of what its rows say: two databases made of the same records have the same ones.

Numbers that only count the order of storing (`id`) are left out or replaced by what they point to, and so is when a file was
done with.
"""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from typing import Any

_PLACE = (
    "(SELECT p.uid FROM exchanges p WHERE p.conversation_id = t.conversation_id ORDER BY p.started_us, p.uid "
    "LIMIT 1) AS conversation"
)
_PRICE = "(SELECT provider || ' ' || model_glob || ' ' || coalesce(valid_from, '') FROM prices WHERE id = t.price_id) AS price"
_BODY = "(SELECT b.hash FROM bodies b WHERE b.id = t.body_id) AS body"
_UID = "(SELECT e.uid FROM exchanges e WHERE e.id = t.exchange_id) AS exchange"

#: table -> (columns left out, expressions in their place)
_RULES: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "attachments": (set(), ()),
    "bodies": ({"id"}, ()),
    "body_attachments": ({"body_id"}, (_BODY,)),
    "conversations": ({"id"}, ()),
    "digests": ({"json"}, ("json_remove(t.json, '$.paid', '$.hit') AS json",)),  # by ids of prices, which depend on the order
    "exchanges": ({"id", "conversation_id", "price_id"}, (_PLACE, _PRICE)),
    "feedback_waiting": (set(), ()),
    "latency_hist": (set(), ()),
    "messages": (
        {"id", "parent_id", "body_id"},
        ("(SELECT p.hash FROM messages p WHERE p.id = t.parent_id) AS parent", _BODY),
    ),
    "prices": ({"id"}, ()),
    "ratings": ({"exchange_id"}, ()),
    "segments": ({"finished_at"}, ("t.finished_at IS NOT NULL AS finished",)),
    "token_timings": ({"exchange_id"}, (_UID,)),
    "usage_daily": (set(), ()),
    "websocket_messages": ({"exchange_id"}, (_UID,)),
    "usage_hourly": (set(), ()),
}


def checksums(conn: sqlite3.Connection) -> dict[str, str]:
    """{table: "<rows> rows, <first half of a SHA-256>"}. Reads everything; holds one table's sorted rows on disk at most."""
    out: dict[str, str] = {}
    for table, (left_out, instead) in _RULES.items():
        digest, rows = sha256(), 0
        for row in conn.execute(_select(conn, table, left_out, instead)):
            digest.update(repr(tuple(_plain(value) for value in row)).encode())
            rows += 1
        out[table] = f"{rows} rows, {digest.hexdigest()[:32]}"
    return out


def rows(conn: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    """The rows a checksum is made of, to see where two differ."""
    return [tuple(row) for row in conn.execute(_select(conn, table, *_RULES[table]))]


def _select(conn: sqlite3.Connection, table: str, left_out: set[str], instead: tuple[str, ...]) -> str:
    columns = [f't."{name}"' for _, name, *_ in conn.execute(f"PRAGMA table_info({table})") if name not in left_out]
    shown = [*columns, *instead]
    order = ", ".join(str(n + 1) for n in range(len(shown)))
    return f"SELECT {', '.join(shown)} FROM {table} t ORDER BY {order}"


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
