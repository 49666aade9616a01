"""Databases of very many exchanges in little time: rows are inserted as the writer would have made them, all with the same few
messages. For what reads statistics; conversations and texts are not like life here.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import batched
from pathlib import Path
from typing import Any

import orjson

from llmtap.policy.pricing import Rate
from llmtap_launcher.store.canonical import body_of
from llmtap_launcher.store.chains import Chains
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.pricing import Prices
from llmtap_launcher.store.rollups import Rollups
from llmtap_launcher.store.rows import iso

START_US = 1_790_899_200_000_000  # 2026-10-02T00:00Z
DAY_US = 86_400_000_000
MODELS = (("qwen3-8b", "Qwen/Qwen3-8B", 9.0), ("llama-3.1-8b", "llama-3.1-8b", 12.0), ("mistral-7b", "mistral-7b", 20.0))
KEYS = ("production", "batch", "ci", "notebook", None)
RATES = (
    Rate("own", "Qwen/*", None, 100_000_000, 400_000_000, 20_000_000, None),
    Rate("own", "llama-*", None, 200_000_000, 200_000_000, None, None),
)
_FAILED = (("upstream_error", 502, "upstream_error"), ("timeout", 504, "timeout_error"), ("rejected", 429, "rate_limit_error"))

COLUMNS = (
    "uid started_at started_us worker boot key_name client_ip user_agent tags method path endpoint model_requested "
    "model_response backend attempts stream cache status outcome error_type error_message finish_reason response_id "
    "temperature max_tokens prompt_tokens completion_tokens cached_tokens reasoning_tokens usage_source queue_ms ttft_ms "
    "duration_ms overhead_ms itl_p50_ms itl_p95_ms itl_max_ms tokens_per_second chunks request_bytes response_bytes "
    "cost_nanousd price_id n_messages input_tip output_tip params_json"
).split()


def rows(n: int, days: float, seed: int = 7) -> Iterator[tuple[dict[str, Any], list[int] | None]]:
    """`n` exchanges over `days` days, in the order of their time, with their gaps; without prices and messages."""
    dice = random.Random(seed)
    uniform, gauss = dice.random, dice.lognormvariate
    step = days * DAY_US / max(n, 1)
    for number in range(n):
        at = START_US + int(number * step)
        asked, served, pace = MODELS[int(uniform() * 3)]
        luck = uniform()
        key = KEYS[int(uniform() * 5)]
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row.update(
            uid=f"{number:026d}",
            started_at=iso(at),
            started_us=at,
            worker="w0",
            boot="w0-crowd",
            key_name=key,
            client_ip="127.0.0.1",
            user_agent="OpenAI/Python 3.52.0",
            tags='["canary"]' if uniform() < 0.05 else None,
            method="POST",
            path="/v1/chat/completions",
            endpoint="chat",
            model_requested=asked,
            attempts=1,
            stream=1,
            status=200,
            outcome="ok",
            usage_source="upstream",
            temperature=0.7,
            max_tokens=1024,
            n_messages=2,
            queue_ms=round(gauss(-1, 1), 3),
            overhead_ms=round(gauss(-1, 0.3), 3),
            request_bytes=int(gauss(8, 1)),
            params_json='{"temperature":0.7,"stream":true,"max_tokens":1024}',
        )
        gaps = None
        tokens = 1 + int(gauss(4.8, 0.8))
        row["prompt_tokens"] = prompt = 10 + int(gauss(6, 1))
        if luck < 0.012:
            outcome, status, kind = _FAILED[int(uniform() * 3)]
            row.update(outcome=outcome, status=status, error_type=kind, prompt_tokens=None, usage_source="none")
            row["duration_ms"] = round(gauss(5, 1), 3)
            if outcome != "rejected":
                row["backend"] = "ab"[int(uniform() * 2)]
        elif luck < 0.06:
            row.update(model_response=served, backend="a", cache="hit", outcome="cached", duration_ms=0.8, ttft_ms=0.5)
            row.update(completion_tokens=tokens, cached_tokens=0, finish_reason="stop")
        else:
            ttft = round(gauss(5.2, 0.5), 3)
            gaps = [int(gauss(0, 0.35) * pace * 10) for _ in range(min(tokens - 1, 12))]
            spent = ttft + (tokens - 1) * pace
            row.update(
                model_response=served,
                backend="ab"[int(uniform() * 2)],
                completion_tokens=tokens,
                cached_tokens=prompt // 16 * 8 if uniform() < 0.5 else 0,
                reasoning_tokens=tokens // 3 if asked == "qwen3-8b" else None,
                ttft_ms=ttft,
                duration_ms=round(spent, 3),
                tokens_per_second=round(1000 / pace * gauss(0, 0.1), 2) if tokens > 1 else None,
                finish_reason="stop" if uniform() < 0.9 else "length",
                response_id=f"chatcmpl-{number}",
                chunks=tokens,
                response_bytes=tokens * 200,
            )
            if gaps:
                ordered = sorted(gaps)
                row.update(
                    itl_p50_ms=ordered[(len(gaps) - 1) // 2] / 10,
                    itl_p95_ms=ordered[-(-95 * len(gaps) // 100) - 1] / 10,
                    itl_max_ms=ordered[-1] / 10,
                )
            if luck < 0.08:
                row.update(outcome="client_abort", finish_reason=None, tokens_per_second=None)
        yield row, gaps


def fill(path: Path, n: int, days: float = 60, seed: int = 7) -> None:
    """Makes a capture database of `n` exchanges."""
    marks = ", ".join("?" * len(COLUMNS))
    with closing(open_writer(path)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        prices, rollups = Prices(conn, RATES), Rollups()
        asked, answered = _messages(conn)
        ident = 0
        for batch in batched(rows(n, days, seed), 5000):
            conn.execute("BEGIN")
            timings = []
            values = []
            for row, gaps in batch:
                ident += 1
                row["cost_nanousd"], row["price_id"] = prices.cost(row)
                row["input_tip"], row["output_tip"] = asked[ident % len(asked)], answered if row["finish_reason"] else None
                values.append(tuple(row.values()))
                rollups.add(row, gaps or ())
                if gaps is not None:
                    timings.append((ident, orjson.dumps([round((row["ttft_ms"] or 0) * 10), *gaps]).decode()))
            conn.executemany(f"INSERT INTO exchanges({', '.join(COLUMNS)}) VALUES ({marks})", values)
            conn.executemany("INSERT INTO token_timings VALUES (?, ?)", timings)
            rollups.flush(conn)
            conn.execute("COMMIT")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _messages(conn: sqlite3.Connection) -> tuple[list[bytes], bytes]:
    """Hashes of some questions and of a reply (to the first)."""
    chains = Chains(conn)
    conn.execute("BEGIN")
    system = body_of({"role": "system", "content": "You are a helpful assistant."})
    asked = []
    for number in range(200):
        hashes, _ = chains.link_all(None, [system, body_of({"role": "user", "content": f"What is {number} squared?"})])
        asked.append(hashes[-1])
    (answered,), _ = chains.link_all(asked[0], [body_of({"role": "assistant", "content": "Zero."})])
    conn.execute("COMMIT")
    return asked, answered
