"""Making room: what is too old or too much goes, in small transactions between the writer's own.

First the arrival times of tokens, then texts, then whole exchanges, each at its own age; past a size the oldest exchanges. A
message goes when no exchange reaches it any more, a body when no message says it, an attachment when no body shows it.
`usage_daily`, `latency_hist` and `digests` of days stay; hours older than the exchanges are added up to days. Freed pages are
given back to the disk.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from llmtap_launcher.store.conversations import summarise
from llmtap_launcher.store.options import Retention
from llmtap_launcher.store.rows import iso

BATCH = 200
_DAY_US = 86_400_000_000
#: past the limit it is pruned to this share of it, so that it is not at it again with the next request
_ENOUGH = 0.9
_VACUUM_PAGES = 2000
_MERGE_PAGES = 500
#: the search index is merged once so many bodies went, as a share of those left
_WORTH_MERGING = 0.25
#: free pages are worth giving back from this many and this share on
_FREE_PAGES, _FREE_SHARE = 500, 0.05


@dataclass(slots=True)
class Pruned:
    """What went. `more`: there is more to do."""

    timings: int = 0
    bodies: int = 0
    exchanges: int = 0
    messages: int = 0
    pages: int = 0
    more: bool = False

    @property
    def anything(self) -> bool:
        """Whether rows went: what is remembered of them is wrong then."""
        return bool(self.timings or self.bodies or self.exchanges)


class Pruner:
    """Works through the writer's connection, outside of any transaction. It remembers how far it has come."""

    def __init__(self, conn: sqlite3.Connection, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        self._conn = conn
        self.retention = retention
        self._clock = clock
        self._done: dict[str, tuple[str, int]] = {}
        self._shrinking = False
        self._folded = ""
        self._dropped = 0  # bodies since the search index was merged

    def run(self, budget_s: float | None = None) -> Pruned:
        """Works for about `budget_s` seconds (None: until done). Raises sqlite3.Error; whole batches are done then."""
        out, end = Pruned(), None if budget_s is None else time.monotonic() + budget_s
        for _ in self._work(out):
            if end is not None and time.monotonic() >= end:
                out.more = True
                return out
        return out

    def due(self) -> dict[str, int]:
        """How many exchanges are due for each step by age: what `run` would do, without the limit on the size."""
        found = {}
        for name, days in self._ages():
            if days is None:
                found[name] = 0
                continue
            sql = {
                "timings": "SELECT count(*) FROM exchanges e JOIN token_timings t ON t.exchange_id = e.id WHERE started_at < ?",
                "bodies": f"SELECT count(*) FROM exchanges WHERE started_at < ? AND {_HAS_TEXT}",
                "exchanges": "SELECT count(*) FROM exchanges WHERE started_at < ?",
            }[name]
            (found[name],) = self._conn.execute(sql, (self._before(days),)).fetchone()
        return found

    def size(self) -> int:
        """Bytes of the database that are in use."""
        pages, free, page = (
            self._conn.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * page)

    # steps: each `next` is one transaction

    def _work(self, out: Pruned) -> Iterator[None]:
        for name, days in self._ages():
            if days is not None:
                yield from self._by_age(name, self._before(days), out)
        yield from self._by_size(out)
        yield from self._tidy_search()
        yield from self._fold_hours()
        yield from self._give_back(out)

    def _ages(self) -> tuple[tuple[str, float | None], ...]:
        keep = self.retention
        # what goes whole anyway needs no step of its own
        return (
            ("timings", _sooner(keep.timings_days, keep.bodies_days, keep.exchanges_days)),
            ("bodies", _sooner(keep.bodies_days, keep.exchanges_days)),
            ("exchanges", keep.exchanges_days),
        )

    def _before(self, days: float) -> str:
        return iso(max(0, round(self._clock() * 1e6 - days * _DAY_US)))

    def _by_age(self, name: str, before: str, out: Pruned) -> Iterator[None]:
        while True:
            after = self._done.get(name, ("", 0))
            rows = self._conn.execute(
                "SELECT id, started_at FROM exchanges WHERE (started_at, id) > (?, ?) AND started_at < ? ORDER BY "
                "started_at, id LIMIT ?",
                (*after, before, BATCH),
            ).fetchall()
            if not rows:
                return
            self._transaction(name, [row[0] for row in rows], out)
            if name != "exchanges":  # those are gone: what is stored late and old is found, too
                self._done[name] = (rows[-1][1], rows[-1][0])
            yield

    def _by_size(self, out: Pruned) -> Iterator[None]:
        most = self.retention.max_bytes
        if most is None:
            return
        while self.size() > (most * _ENOUGH if self._shrinking else most):
            self._shrinking = True
            (left,) = self._conn.execute("SELECT count(*) FROM exchanges").fetchone()
            if not left:
                break
            # the search index gives its room back only when it is merged: so a tenth, then that, then another look
            for _ in range(0, max(left // 10, 1), BATCH):
                rows = self._conn.execute("SELECT id FROM exchanges ORDER BY started_at, id LIMIT ?", (BATCH,)).fetchall()
                self._transaction("exchanges", [row[0] for row in rows], out)
                yield
            yield from self._merge_search()
        self._shrinking = False

    def _merge_search(self) -> Iterator[None]:
        """Rewrites the search index without what was deleted, some pages at a time (https://sqlite.org/fts5.html#the_merge_command)."""
        pages = -_MERGE_PAGES  # negative: begins to merge all of it
        while True:
            before = self._conn.total_changes
            self._conn.execute("INSERT INTO bodies_fts(bodies_fts, rank) VALUES ('merge', ?)", (pages,))
            yield
            if self._conn.total_changes - before < 2:
                break
            pages = _MERGE_PAGES
        self._dropped = 0

    def _tidy_search(self) -> Iterator[None]:
        if self._dropped:
            (left,) = self._conn.execute("SELECT count(*) FROM bodies").fetchone()
            if self._dropped > left * _WORTH_MERGING:
                yield from self._merge_search()

    def _transaction(self, name: str, ids: list[int], out: Pruned) -> None:
        step = {"timings": self._drop_timings, "bodies": self._drop_bodies, "exchanges": self._drop_exchanges}[name]
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            step(ids, out)
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise

    def _drop_timings(self, ids: list[int], out: Pruned) -> None:
        out.timings += self._conn.execute(f"DELETE FROM token_timings WHERE exchange_id IN ({_marks(ids)})", ids).rowcount

    def _drop_bodies(self, ids: list[int], out: Pruned) -> None:
        rows = self._conn.execute(f"SELECT {_TEXTS} FROM exchanges WHERE id IN ({_marks(ids)}) AND {_HAS_TEXT}", ids).fetchall()
        self._conn.executemany(
            "UPDATE exchanges SET input_tip = NULL, output_tip = NULL, tools_hash = NULL, loose_tip = NULL, loose_input = NULL, "
            "params_json = ?, response_meta_json = ? WHERE id = ?",
            [(_without(row[5], ("body",)), _without(row[6], ("body", "output_tips", "reasoning")), row[0]) for row in rows],
        )
        self._conn.execute(f"DELETE FROM websocket_messages WHERE exchange_id IN ({_marks(ids)})", ids)
        talks = {row[1] for row in rows if row[1] is not None}
        self._conn.executemany(
            "UPDATE conversations SET title = NULL WHERE id = ? AND NOT EXISTS "
            "(SELECT 1 FROM exchanges e WHERE e.conversation_id = conversations.id AND e.input_tip IS NOT NULL)",
            [(talk,) for talk in talks],
        )
        out.bodies += len(rows)
        out.messages += self._drop_unreached(rows)

    def _drop_exchanges(self, ids: list[int], out: Pruned) -> None:
        marks = _marks(ids)
        rows = self._conn.execute(f"SELECT {_TEXTS} FROM exchanges WHERE id IN ({marks})", ids).fetchall()
        corrections = self._conn.execute(
            f"SELECT correction FROM ratings WHERE exchange_id IN ({marks}) AND correction IS NOT NULL", ids
        ).fetchall()
        for table, column in (
            ("token_timings", "exchange_id"),
            ("websocket_messages", "exchange_id"),
            ("ratings", "exchange_id"),
            ("exchanges", "id"),
        ):
            self._conn.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})", ids)
        for talk in {row[1] for row in rows if row[1] is not None}:
            summarise(self._conn, talk)
        out.exchanges += len(ids)
        out.messages += self._drop_unreached(rows, [correction for (correction,) in corrections])

    def _drop_unreached(self, rows: Iterable[Any], more: Iterable[bytes] = ()) -> int:
        """Messages, bodies and attachments that nobody reaches any more, from the tips of these exchanges upwards."""
        todo = list(more)
        tools = set()
        for _, _, input_tip, output_tip, tools_hash, _, meta in rows:
            todo += [bytes.fromhex(tip) for tip in _object(meta).get("output_tips", ()) if isinstance(tip, str)]
            todo += [tip for tip in (output_tip, input_tip) if tip is not None]
            tools.add(tools_hash)
        gone = 0
        while todo:
            gone += self._drop_message(todo.pop(), todo)
        for hashed in tools - {None}:
            self._conn.execute(
                "DELETE FROM bodies WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM exchanges WHERE tools_hash = bodies.hash) "
                "AND NOT EXISTS (SELECT 1 FROM messages WHERE body_id = bodies.id)",
                (hashed,),
            )
        return gone

    def _drop_message(self, hashed: bytes, todo: list[bytes]) -> int:
        execute = self._conn.execute
        row = execute("SELECT id, parent_id, body_id FROM messages WHERE hash = ?", (hashed,)).fetchone()
        if row is None:
            return 0
        ident, parent_id, body_id = row
        parent = execute("SELECT hash FROM messages WHERE id = ?", (parent_id,)).fetchone()
        if execute(
            _REACHED, {"id": ident, "hash": hashed, "parent": parent[0] if parent else None, "hex": hashed.hex()}
        ).fetchone():
            return 0
        execute("DELETE FROM messages WHERE id = ?", (ident,))
        if execute("SELECT 1 FROM messages WHERE body_id = ? LIMIT 1", (body_id,)).fetchone() is None:
            shown = execute("SELECT hash FROM body_attachments WHERE body_id = ?", (body_id,)).fetchall()
            if shown:
                execute("DELETE FROM body_attachments WHERE body_id = ?", (body_id,))
                self._conn.executemany(
                    "DELETE FROM attachments WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM body_attachments WHERE hash "
                    "= attachments.hash)",
                    shown,
                )
            self._dropped += execute(
                "DELETE FROM bodies WHERE id = ? AND NOT EXISTS (SELECT 1 FROM exchanges WHERE tools_hash = bodies.hash)",
                (body_id,),
            ).rowcount
        if parent is not None:
            todo.append(parent[0])
        return 1

    def _fold_hours(self) -> Iterator[None]:
        days = self.retention.exchanges_days
        day = None if days is None else self._before(days)[:10]
        if day is None or day == self._folded:
            return
        self._conn.execute("BEGIN IMMEDIATE")
        self._conn.execute(
            "INSERT INTO latency_hist SELECT substr(hour, 1, 10), model, key_name, metric, bucket, sum(n) FROM latency_hist "
            "WHERE hour < ? AND length(hour) > 10 GROUP BY 1, 2, 3, 4, 5 ON CONFLICT DO UPDATE SET n = n + excluded.n",
            (day,),
        )
        self._conn.execute("DELETE FROM latency_hist WHERE hour < ? AND length(hour) > 10", (day,))
        self._conn.execute("DELETE FROM usage_hourly WHERE hour < ?", (day,))
        self._conn.execute("DELETE FROM digests WHERE period < ? AND length(period) > 10", (day,))
        self._conn.execute("DELETE FROM feedback_waiting WHERE at < ?", (day,))  # their exchange will not come any more
        self._conn.execute("COMMIT")
        self._folded = day
        yield

    def _give_back(self, out: Pruned) -> Iterator[None]:
        while True:
            pages, free = (self._conn.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "freelist_count"))
            if free < _FREE_PAGES or free < pages * _FREE_SHARE:
                return
            self._conn.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
            (left,) = self._conn.execute("PRAGMA freelist_count").fetchone()
            if left >= free:
                return  # a database that was not made for it
            out.pages += free - left
            yield


_TEXTS = "id, conversation_id, input_tip, output_tip, tools_hash, params_json, response_meta_json"
_HAS_TEXT = (
    "(input_tip IS NOT NULL OR output_tip IS NOT NULL OR tools_hash IS NOT NULL OR params_json LIKE '%\"body\":%' "
    "OR response_meta_json LIKE '%\"body\":%')"
)
_REACHED = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM messages WHERE parent_id = :id)
  OR EXISTS (SELECT 1 FROM exchanges WHERE input_tip = :hash)
  OR EXISTS (SELECT 1 FROM exchanges WHERE output_tip = :hash)
  OR EXISTS (SELECT 1 FROM ratings WHERE correction = :hash)
  OR EXISTS (SELECT 1 FROM exchanges WHERE input_tip = :parent AND response_meta_json LIKE '%"output_tips"%' || :hex || '%')
"""


def _sooner(*days: float | None) -> float | None:
    """An age, None where a later step comes no later anyway."""
    own, *others = days
    return None if own is None or any(other is not None and other <= own for other in others) else own


def _marks(ids: list[int]) -> str:
    return ", ".join("?" * len(ids))


def _object(raw: str | None) -> dict[str, Any]:
    value = orjson.loads(raw) if raw else {}
    return value if isinstance(value, dict) else {}


def _without(raw: str | None, names: Iterable[str]) -> str | None:
    if not raw:
        return raw
    kept = {key: value for key, value in _object(raw).items() if key not in names}
    return orjson.dumps(kept).decode() if kept else None
