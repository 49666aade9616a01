"""`llmtap export`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from click.testing import Result

from support.captures import Captures, weather
from support.command import llmtap


def export(captures: Captures, *words: str) -> Result:
    return llmtap("export", *words, "--db", captures.db)


@pytest.fixture
def captures(tmp_path: Path) -> Captures:
    with Captures(tmp_path / "data") as opened:
        weather(opened)
    return opened


def test_a_file_and_its_line_in_exports(captures: Captures, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    result = export(captures, "openai-sft", "-o", str(out), "--redact")
    assert result.exit_code == 0, result.output
    first, second, third = result.stderr.splitlines()
    assert first.startswith(f"{out}: 1 rows, sha256 ")
    assert (second, third) == ("left out: 1 (turns that a later turn repeats)", "redacted: nothing")
    with closing(sqlite3.connect(captures.db)) as conn:
        ((form, sql, rows, sha, manifest),) = conn.execute("SELECT format, sql, rows, sha256, manifest_json FROM exports")
        assert (form, rows) == ("openai-sft", 1) and first.endswith(sha)
        assert conn.execute(f"SELECT count(*) FROM exchanges e WHERE {sql}").fetchone() == (2,)
    assert orjson.loads(manifest)["files"][0]["name"] == str(out)


def test_a_copy_is_only_read(captures: Captures, tmp_path: Path) -> None:
    copy = tmp_path / "copies" / "may.db"
    copy.parent.mkdir()
    copy.write_bytes(captures.db.read_bytes())
    before = copy.read_bytes()
    result = llmtap("export", "raw", "-o", tmp_path / "raw.jsonl", "--db", copy)
    assert result.exit_code == 0, result.output
    assert copy.read_bytes() == before
    assert not (copy.parent / "writer.lock").exists()


def test_to_standard_output(captures: Captures) -> None:
    result = export(captures, "batch", "-o", "-", "--limit", "1")
    assert result.exit_code == 0
    assert orjson.loads(result.stdout)["url"] == "/v1/chat/completions"


def test_any_stands_for_everything(captures: Captures, tmp_path: Path) -> None:
    result = export(captures, "trl-sft", "-o", str(tmp_path / "x"), "--outcome", "any", "--finish-reason", "any", "--every-turn")
    assert "3 rows" in result.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nonsense", "-o", "x"], 2, "Invalid value for 'FORMAT'"),
        (["openai-sft"], 2, "Missing option '-o'"),
        (["openai-sft", "-o", "x", "--reasoning", "keep"], 2, "openai-sft has no place for reasoning"),
        (["openai-sft", "-o", "x", "--mark"], 2, "--mark goes with"),
        (["trl-sft", "-o", "x", "--parquet", "--tool-args", "object"], 2, "--tool-args string"),
        (["trl-sft", "-o", "-", "--validation", "0.1"], 2, "standard output"),
        (["trl-sft", "-o", "x", "--sample", "0"], 2, "--sample"),
        (["trl-sft", "-o", "x", "--since", "2030-01-02", "--until", "2030-01-01"], 2, "not after"),
        (["trl-sft", "-o", "x", "--rating", "good"], 1, "no condition on a rating"),
        (["trl-sft", "-o", "x", "--sql", "SELECT"], 1, "--sql: "),
        (["trl-sft", "-o", "x", "--redact-pattern", "x"], 1, "NAME=REGULAR"),
        (["trl-sft", "-o", "x", "--model", "nobody"], 1, "no row was written"),
        (["trl-sft", "-o", "data/capture.db/x"], 1, "cannot be written"),
    ],
)
def test_mistakes(
    captures: Captures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = export(captures, *words)
    assert (result.exit_code, said in result.output) == (status, True), result.output
    assert "Traceback" not in result.output


def test_without_a_row_the_file_of_before_stays(captures: Captures, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("rows of yesterday")
    result = export(captures, "trl-sft", "-o", str(tmp_path / "x.jsonl"), "--model", "nobody")
    assert result.exit_code == 1 and "--finish-reason" in result.output
    assert [p.name for p in tmp_path.glob("*x.jsonl*")] == ["x.jsonl"]
    assert (tmp_path / "x.jsonl").read_text() == "rows of yesterday"


def test_only_own_patterns(captures: Captures, tmp_path: Path) -> None:
    result = export(captures, "trl-sft", "-o", str(tmp_path / "x.jsonl"), "--redact-pattern", "city=Paris|Tokyo")
    assert "redacted: 6 city" in result.stderr or "city" in result.stderr
    assert "Paris" not in (tmp_path / "x.jsonl").read_text()
