"""`llmtap replay` against what `llmtap up` runs, and docs/replay.md as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtap_launcher import guard
from support.launcher import ROOT, Up, llmtap, running_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
]
PAGE = (ROOT / "docs" / "replay.md").read_text("utf-8")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two engines, and eight exchanges in the database."""
    folder = tmp_path_factory.mktemp("replay")
    with running_up(folder, "--dry-run", config={"cache": {"enabled": True}}) as up:
        for number in range(8):
            body: dict[str, Any] = {
                "model": "sim-small",
                "messages": [{"role": "user", "content": f"question {number}"}],
                "max_tokens": 6,
                "temperature": 0,
                "seed": 7,
                "stream": number % 2 == 1,
            }
            assert httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=30).status_code == 200
        text = {"model": "sim-small", "prompt": "Once upon", "max_tokens": 4}
        assert httpx.post(f"{up.url}/v1/completions", json=text, timeout=30).status_code == 200
        eventually(lambda: rows(up, "SELECT count(*) FROM exchanges WHERE outcome = 'ok'")[0][0] == 9, "not stored")
        yield up


def rows(up: Up, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{up.data}/capture.db?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def made(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_through_the_gateway(up: Up) -> None:
    found = made(llmtap("replay", "--run", "gate", "--format", "json", cwd=up.data.parent))
    assert (found["a"]["requests"], found["b"]["requests"], found["b"]["succeeded"]) == (9, 9, 9)
    # the engine says the same to the same seed, and it was the engine: the cache was passed by
    assert (found["replies"]["same"], found["replies"]["similarity"]) == (9, 1.0)
    of_run = "json_extract(metadata_json, '$.replay') = 'gate'"
    kept = rows(up, f"SELECT endpoint, stream, cache, key_name, tags FROM exchanges WHERE {of_run} ORDER BY endpoint, stream")
    assert [row[:2] for row in kept] == [("chat", 0)] * 4 + [("chat", 1)] * 4 + [("completions", 0)]
    assert {row[2] for row in kept} == {"bypass"} and {row[4] for row in kept} == {'["replay","replay:gate"]'}


def test_straight_to_a_backend_whose_writer_is_at_work(up: Up) -> None:
    found = made(llmtap("replay", "--to", "b", "--run", "b", "--limit", "4", "--format", "json", cwd=up.data.parent))
    assert found["replies"]["count"] == 4
    assert set(rows(up, "SELECT backend, key_name FROM exchanges WHERE json_extract(metadata_json, '$.replay') = 'b'")) == {
        ("b", "replay")
    }


def test_a_server_that_ends_meanwhile(up: Up) -> None:
    with running_sim(model="other", ttft_ms=1, tokens_per_second=3000) as sim:
        words = ("replay", "--to", sim.url, "--to-model", "other", "--run", "gone", "--concurrency", "1")
        sim.fail("http_500", times=None, path="/v1/completions")
        done = llmtap(*words, "--limit", "3", cwd=up.data.parent)
        assert done.returncode == 0 and "failed: 1 (500" in done.stderr, done.stderr
    done = llmtap(*words, cwd=up.data.parent)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 2 and "/v1/chat/completions: " in done.stderr, done.stderr
    with running_sim(model="other", ttft_ms=1, tokens_per_second=3000, port=sim.port) as sim:
        found = made(llmtap(*words, "--format", "json", cwd=up.data.parent))
        # two were answered the first time: the others, and what had failed
        assert len(sim.requests()) == 7
    assert found["replies"]["count"] == 9 and found["b"]["succeeded"] == 9
    assert found["b"]["requests"] == 9  # of what failed before, the good one


def test_the_page(up: Up) -> None:
    lines = [line for line in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)[0].splitlines() if line]
    commands = [shlex.split(re.split(r"\s{3,}", line)[0])[1:] for line in lines]
    assert len(commands) >= 6
    for prose in re.findall(r"`llmtap ((?:analyze|export) [^`]*)`", PAGE):
        commands.append(shlex.split(prose))
    with running_sim(model="new", ttft_ms=1, tokens_per_second=3000) as sim:
        here = {"llama-3.1-8b": "sim-small", "Qwen/*": "sim-*", "http://127.0.0.1:8082/v1": f"{sim.url}/v1"}
        for words in commands:
            if words[0] == "replay" and "new" in words and "--to" not in words:
                words = [*words, "--to", sim.url]  # the gateway knows no such model
            done = llmtap(*(here.get(word, word) for word in words), cwd=up.data.parent)
            nothing = "--rating" in words  # there are no ratings here, and it says so
            assert done.returncode == nothing, (words, done.stdout, done.stderr)
            if nothing:
                assert "nothing that was captured fits" in done.stderr
    (sql,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    found = rows(up, sql)
    assert len(found) == 9 and {row[2] for row in found} == {"new"}


def test_nothing_captured_yet(tmp_path: Path) -> None:
    done = llmtap("replay", cwd=tmp_path)
    assert done.returncode == 1 and "nothing was captured yet" in done.stderr and "Traceback" not in done.stderr
