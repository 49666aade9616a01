"""The counts beside the list of requests: all of them by one query.

Datasette's own facets ask once a column. Over a million exchanges that is five walks; here it is one, over an index that has
the five columns in this order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from datasette import facets, utils
from datasette.database import QueryInterrupted

_Facet: Any = facets.Facet  # Datasette has no type annotations
_with: Any = utils.path_with_added_args
_without: Any = utils.path_with_removed_args

#: columns of the index `exchanges_counts`, in its order
COLUMNS = ("model", "key_name", "status", "finish_reason", "outcome")


def sql_for(inner: str, given: Collection[str]) -> str:
    """The query. `inner`: the page's own selection; `given`: its parameters in the address, which say what it filters by.

    A filter by anything else has an index of its own, or none: `+` keeps SQLite from walking the wrong one only to group.
    """
    plus = "" if all(name in COLUMNS or (name.startswith("_") and name != "_where") for name in given) else "+"
    groups = ", ".join(plus + name for name in COLUMNS)
    return f"select {', '.join(COLUMNS)}, count(*) from ({inner}) group by {groups}"


def tally(rows: Iterable[Sequence[Any]], place: int) -> list[tuple[Any, int]]:
    """The values of the column at `place` with how often they occur, the most frequent first; NULL does not count."""
    counts: dict[Any, int] = {}
    for row in rows:
        if row[place] is not None:
            counts[row[place]] = counts.get(row[place], 0) + row[-1]
    return sorted(counts.items(), key=lambda found: (-found[1], str(found[0])))


class TogetherFacet(_Facet):  # type: ignore[misc]
    """Facets of the type `together` in the metadata: any of COLUMNS."""

    type = "together"

    async def facet_results(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The facets, and the names of those that took too long (all or none)."""
        names = [name for config in self.get_configs() if (name := config["config"].get("simple")) in COLUMNS]
        if not names:
            return [], []
        pairs = self.get_querystring_pairs()
        try:
            answer = await self.ds.execute(
                self.database,
                sql_for(self.sql, {name for name, _ in pairs}),
                self.params,
                truncate=False,
                custom_time_limit=self.ds.setting("facet_time_limit_ms"),
            )
        except QueryInterrupted:
            return [], names
        size = self.get_facet_size()
        return [self._facet(name, tally(answer.rows, COLUMNS.index(name)), size, pairs) for name in dict.fromkeys(names)], []

    def _facet(self, name: str, counts: list[tuple[Any, int]], size: int, pairs: list[tuple[str, str]]) -> dict[str, Any]:
        """One, in the shape that Datasette's pages and JSON have."""
        values = []
        for value, count in counts[:size]:
            selected = (name, str(value)) in pairs
            path = (_without if selected else _with)(self.request, {name: str(value)})
            values.append(
                {
                    "value": value,
                    "label": value,
                    "count": count,
                    "toggle_url": self.ds.absolute_url(self.request, self.ds.urls.path(path)),
                    "selected": selected,
                }
            )
        toggle = self.ds.urls.path(_without(self.request, {"_facet_together": name}))
        return {
            "name": name,
            "type": "column",
            "hideable": False,
            "toggle_url": toggle,
            "results": values,
            "truncated": len(counts) > size,
        }
