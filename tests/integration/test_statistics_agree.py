"""What the commands say, and what DuckDB computes from the raw records: the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from click.testing import CliRunner

from llmtap_launcher.cli import cli
from support.traffic import plain, write

pytestmark = pytest.mark.integration

#: exchanges as one table, out of the records; nothing of ours is used
_EXCHANGES = """
CREATE TABLE x AS
SELECT b.uid, to_timestamp(b.at_us / 1e6) AT TIME ZONE 'UTC' AS began, b.key_name AS key, b.model AS asked, b.tags,
  e.backend, coalesce(e.outcome, 'lost') AS outcome, e.error_type, e.ttft_ms, e.duration_ms, e.deltas, e.content_type,
  e.summary.model AS served, e.summary.usage.prompt_tokens AS tin, e.summary.usage.completion_tokens AS tout,
  e.summary.usage.cached_tokens AS cached, e.summary.choices[1].finish_reason AS finish
FROM (SELECT * FROM r WHERE t = 'begin') b LEFT JOIN (SELECT * FROM r WHERE t = 'end') e USING (uid)
"""
_MODEL = "coalesce(served, CASE WHEN backend IS NOT NULL THEN asked END, 'other')"
_FIGURES = """
SELECT count(*) AS requests, count(*) FILTER (outcome IN ('ok', 'cached')) AS succeeded,
  count(*) FILTER (outcome = 'client_abort') AS aborted,
  sum(tin) AS prompt_tokens, sum(tout) AS completion_tokens, sum(cached) AS cached_tokens,
  {} FROM x WHERE {}
"""
_P = (50, 90, 95, 99)
_RATE = """CASE WHEN outcome <> 'ok' THEN NULL
  WHEN content_type = 'text/event-stream' AND tout > 1 AND duration_ms - ttft_ms >= 10
    THEN (tout - 1) / (duration_ms - ttft_ms) * 1000
  ELSE tout / duration_ms * 1000 END"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write(folder, 1200)
    plain(folder, folder / "records.jsonl")
    (folder / "llmtap.yaml").write_text(
        "prices:\n- {model: served-small, input_usd_per_million: 1, output_usd_per_million: 4, cached_usd_per_million: 0.25}\n"
        "- {model: served-large, input_usd_per_million: 3, output_usd_per_million: 3}\n"
    )
    return folder


@pytest.fixture(scope="module")
def raw(folder: Path) -> duckdb.DuckDBPyConnection:
    db = duckdb.connect()
    db.execute(
        f"CREATE TABLE r AS SELECT * FROM read_json('{folder / 'records.jsonl'}', format = 'newline_delimited', sample_size = -1)"
    )
    db.execute(_EXCHANGES)
    return db


def said(folder: Path, command: str, *args: str) -> Any:
    done = CliRunner().invoke(
        cli, [command, "--config", str(folder / "llmtap.yaml"), "--db", str(folder), "--format", "json", *args]
    )
    assert done.exit_code == 0, done.output
    return orjson.loads(done.stdout)


def computed(raw: duckdb.DuckDBPyConnection, where: str) -> dict[str, Any]:
    metrics = ", ".join(
        f"quantile_cont({column}, {p / 100}) FILTER (outcome = 'ok') AS {name}_{p}"
        for name, column in (("ttft_ms", "ttft_ms"), ("duration_ms", "duration_ms"), ("tokens_per_second", f"round({_RATE}, 2)"))
        for p in _P
    )
    cursor = raw.execute(_FIGURES.format(metrics, where))
    return dict(zip([column[0] for column in cursor.description or ()], cursor.fetchone() or (), strict=True))


def same(figures: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in ("requests", "succeeded", "aborted", "prompt_tokens", "completion_tokens", "cached_tokens"):
        assert figures[name] == int(wanted[name] or 0), name
    assert figures["failed"] == figures["requests"] - figures["succeeded"] - figures["aborted"]
    for metric in ("ttft_ms", "duration_ms", "tokens_per_second"):
        for p in _P:
            value = wanted[f"{metric}_{p}"]
            assert figures[metric][f"p{p}"] == (None if value is None else pytest.approx(value, rel=1e-4)), (metric, p)


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ((), "true"),
        (("--model", "served-small"), f"{_MODEL} = 'served-small'"),
        (("--key", "ci", "--key", ""), "coalesce(key, 'ci') = 'ci'"),
        (("--backend", "b", "--tag", "canary"), "backend = 'b' AND list_contains(tags, 'canary')"),
        (
            ("--since", "2026-11-21T03:10:30", "--until", "2026-11-21T05:20"),
            "began >= '2026-11-21 03:10:30' AND began < '2026-11-21 05:20:00'",
        ),
    ],
)
def test_analyze(folder: Path, raw: duckdb.DuckDBPyConnection, args: tuple[str, ...], where: str) -> None:
    made = said(folder, "analyze", *args)
    assert made["exact"]
    total = made["total"]
    same(total, computed(raw, where))
    for name, column in (("by_model", _MODEL), ("by_key", "coalesce(key, '')"), ("by_backend", "coalesce(backend, '')")):
        for row in made[name]:
            same(row, computed(raw, f"{where} AND {column} = '{row[name[3:]]}'"))
    hours = dict(raw.execute(f"SELECT strftime(began, '%Y-%m-%dT%H'), count(*) FROM x WHERE {where} GROUP BY 1").fetchall())
    assert {row["time"]: row["requests"] for row in made["by_time"]} == hours
    counted = raw.execute(
        "SELECT coalesce(error_type, outcome), count(*) FROM x "
        f"WHERE {where} AND outcome NOT IN ('ok', 'cached', 'client_abort') GROUP BY 1"
    )
    assert total["errors"] == dict(counted.fetchall())
    finished = raw.execute(f"SELECT finish, count(*) FROM x WHERE {where} AND finish IS NOT NULL GROUP BY 1").fetchall()
    assert total["finish_reasons"] == dict(finished)
    gaps = raw.execute(
        f"SELECT count(*), {', '.join(f'quantile_cont(gap / 10, {p / 100})' for p in _P)} FROM "
        f"(SELECT unnest(deltas[2:]) AS gap FROM x WHERE {where} AND outcome = 'ok')"
    ).fetchone()
    assert gaps is not None
    assert [total["itl_ms"][name] for name in ("n", "p50", "p90", "p95", "p99")] == pytest.approx(list(gaps))


_COST = """CASE WHEN outcome = 'cached' THEN 0
  WHEN served = 'served-small' THEN (tin - cached) * 1 + cached * 0.25 + tout * 4
  WHEN served = 'served-large' THEN tin * 3 + tout * 3 END / 1e6"""


def test_cost(folder: Path, raw: duckdb.DuckDBPyConnection) -> None:
    made = said(folder, "cost")
    row = raw.execute(
        f"SELECT sum({_COST}), sum(CASE WHEN served = 'served-small' AND outcome <> 'cached' THEN cached * 0.75 END) / 1e6, "
        "sum(CASE WHEN outcome = 'cached' THEN tin * CASE served WHEN 'served-small' THEN 1 ELSE 3 END + "
        "tout * CASE served WHEN 'served-small' THEN 4 ELSE 3 END END) / 1e6 FROM x"
    ).fetchone()
    assert row is not None
    total = made["total"]
    names = ("cost_usd", "saved_by_prefix_cache_usd", "saved_by_gateway_cache_usd")
    assert [total[name] for name in names] == pytest.approx([float(value) for value in row], rel=1e-5)
    by_key = raw.execute(f"SELECT coalesce(key, ''), coalesce(sum({_COST}), 0) FROM x GROUP BY 1").fetchall()
    assert {r["key"]: r["cost_usd"] for r in made["by_key"]} == pytest.approx({key: float(cost) for key, cost in by_key})


def test_slow(folder: Path, raw: duckdb.DuckDBPyConnection) -> None:
    for by, column, order in (
        ("duration", "duration_ms", "DESC"),
        ("ttft", "ttft_ms", "DESC"),
        ("stall", "list_max(deltas[2:]) / 10", "DESC"),
    ):
        found = said(folder, "slow", "--by", by, "-n", "12")
        wanted = raw.execute(f"SELECT {column} FROM x WHERE {column} IS NOT NULL ORDER BY 1 {order} LIMIT 12").fetchall()
        name = {"duration": "duration_ms", "ttft": "ttft_ms", "stall": "itl_max_ms"}[by]
        assert [row[name] for row in found] == pytest.approx([float(value) for (value,) in wanted])


def test_compare(folder: Path, raw: duckdb.DuckDBPyConnection) -> None:
    done = CliRunner().invoke(cli, ["compare", "served-small", "served-large", "--db", str(folder), "--format", "json"])
    assert done.exit_code == 0, done.output
    rows = {row["metric"]: row for row in orjson.loads(done.stdout)["metrics"]}
    for side, model in (("a", "served-small"), ("b", "served-large")):
        found = raw.execute(
            "SELECT median(duration_ms), avg(tout), quantile_cont(ttft_ms, 0.95) FROM x "
            f"WHERE outcome = 'ok' AND served = '{model}'"
        ).fetchone()
        wanted = [rows[name][side] for name in ("whole request, median", "tokens out, mean", "first token, p95")]
        assert wanted == pytest.approx([float(value) for value in found or ()])
