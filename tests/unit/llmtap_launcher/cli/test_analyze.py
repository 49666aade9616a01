"""`llmtap analyze` as a user types it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import orjson
import pytest

from support.captures import Captures, weather
from support.command import llmtap


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Captures(tmp_path / "data") as captures:
        weather(captures)
    return tmp_path / "data"


run = partial(llmtap, "analyze")


def test_a_table(folder: Path) -> None:
    done = run("--db", str(folder))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{folder}: 3 requests, 2025-11-21T09:30:07.000Z")
    assert "66.7 % succeeded, 0 failed, 1 aborted" in done.stdout


def test_json_and_lines(folder: Path) -> None:
    made = orjson.loads(run("--db", str(folder), "--format", "json").stdout)
    assert (made["total"]["requests"], made["total"]["aborted"], made["exact"]) == (3, 1, True)
    assert made["by_key"][0]["key"] == "production"
    lines = [orjson.loads(line) for line in run("--db", str(folder), "--format", "jsonl", "--by", "key").stdout.splitlines()]
    assert [line["group"] for line in lines] == ["total", "key", "hour"]


def test_a_page(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    done = run("--db", str(folder), "--html", str(target))
    assert done.stderr == f"{target}: written\n"
    assert target.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()].count("report.html") == 1
    missing = run("--db", str(folder), "--html", str(tmp_path / "none" / "report.html"))
    assert (missing.exit_code, missing.stderr) == (
        1,
        f"{tmp_path}/none/report.html: cannot be written: No such file or directory\n",
    )


def test_nothing_there(tmp_path: Path) -> None:
    done = run("--db", str(tmp_path / "none.db"))
    assert (done.exit_code, done.stderr) == (
        1, f"{tmp_path}/none.db: no such database: nothing was captured yet (--db names another)\n",
    )  # fmt: skip
    assert "neither capture.db nor spool files in it" in run("--db", str(tmp_path)).stderr
