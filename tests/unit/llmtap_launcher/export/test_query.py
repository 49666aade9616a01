"""Every filter leaves out what it says, and only that."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export.options import Wanted
from llmtap_launcher.export.query import where
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.database import connect_ro


def count(db: Path, **given: Any) -> int:
    with closing(connect_ro(db)) as conn:
        sql, values = where(conn, Wanted(**given))
        return int(conn.execute(f"SELECT count(*) FROM exchanges e WHERE {sql}", values).fetchone()[0])


def plain(db: Path, sql: str) -> int:
    with closing(connect_ro(db)) as conn:
        return int(conn.execute(f"SELECT count(*) FROM exchanges WHERE {sql}").fetchone()[0])


DEFAULT = "outcome IN ('ok', 'cached') AND "
DEFAULT += "finish_reason IN ('stop', 'tool_calls', 'end_turn', 'tool_use', 'stop_sequence', 'completed') "
DEFAULT += "AND endpoint IN ('chat', 'messages', 'responses', 'ollama_chat')"
ANY: dict[str, Any] = {"outcomes": (), "finish_reasons": (), "endpoints": ()}


@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        ({}, DEFAULT),
        (ANY, "1"),
        (ANY | {"outcomes": ("timeout", "client_abort")}, "outcome IN ('timeout', 'client_abort')"),
        (ANY | {"finish_reasons": ("length",)}, "finish_reason = 'length'"),
        (ANY | {"endpoints": ("completions",)}, "endpoint = 'completions'"),
        (ANY | {"min_tokens": 1000}, "prompt_tokens + completion_tokens >= 1000"),
        (ANY | {"max_tokens": 1000}, "coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0) <= 1000"),
        (ANY | {"selection": Selection(keys=("ci",))}, "key_name = 'ci'"),
        (ANY | {"ratings": ("up",)}, "id IN (SELECT exchange_id FROM ratings WHERE name = 'thumb' AND value > 0)"),
        (
            ANY | {"ratings": ("up", "helpfulness>=3")},
            "id IN (SELECT exchange_id FROM ratings WHERE name = 'thumb' AND value > 0) "
            "AND id IN (SELECT exchange_id FROM ratings WHERE name = 'helpfulness' AND value >= 3)",
        ),
        (ANY | {"sql": "SELECT id, model FROM exchanges WHERE id < 50;"}, "id < 50"),
        (ANY | {"sql": "SELECT uid FROM exchanges WHERE id < 50"}, "id < 50"),
        (ANY | {"sql": "WITH r AS (SELECT exchange_id FROM ratings) SELECT * FROM r"}, "id IN (SELECT exchange_id FROM ratings)"),
    ],
)
def test_filters(demo_db: Path, given: dict[str, Any], same_as: str) -> None:
    expected = plain(demo_db, same_as)
    assert count(demo_db, **given) == expected > 0


@pytest.mark.parametrize(
    "sql", ["SELECT model FROM exchanges", "SELEC", "SELECT id FROM nowhere", "DELETE FROM exchanges", "SELECT 1; SELECT 2"]
)
def test_queries_that_name_nothing(demo_db: Path, sql: str) -> None:
    with pytest.raises(LlmtapError, match="--sql"):
        count(demo_db, sql=sql)
