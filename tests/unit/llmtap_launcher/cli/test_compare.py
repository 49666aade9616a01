"""`llmtap compare` as a user types it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import orjson
import pytest

from support.command import llmtap
from support.traffic import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write(folder, 300)
    return folder


run = partial(llmtap, "compare")


def test_a_table(folder: Path) -> None:
    done = run("served-small", "served-large", "--db", str(folder), "--pairs", "1")
    assert done.exit_code == 0, done.output
    assert f"{folder}: A served-small (" in done.stdout
    assert "whole request, median" in done.stdout
    assert done.stdout.count("\n? question") == 1


def test_json_and_lines(folder: Path) -> None:
    args = ["2026-11-21..2026-11-21T04:00", "2026-11-21T04:00..", "--db", str(folder), "--key", "ci"]
    made = orjson.loads(run(*args, "--format", "json").stdout)
    whole = orjson.loads(llmtap("analyze", "--db", folder, "--key", "ci", "--format", "json").stdout)
    assert made["a"]["requests"] + made["b"]["requests"] == whole["total"]["requests"]
    lines = [orjson.loads(line) for line in run(*args, "--format", "jsonl", "--pairs", "2").stdout.splitlines()]
    assert [line["group"] for line in lines] == ["a", "b", *["metric"] * len(made["metrics"]), "pair", "pair"]


def test_wrong_usage(folder: Path) -> None:
    assert run("a").exit_code == 2
    done = run("yesterday..never", "b", "--db", str(folder))
    assert done.exit_code == 2
    assert "'never' is no time" in done.stderr
    done = run("served-small", "nobody", "--db", str(folder))
    assert done.exit_code == 1 and "nothing was captured of nobody" in done.stderr
