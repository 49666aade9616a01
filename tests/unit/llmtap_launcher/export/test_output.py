"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export.output import Lines, Printed, hash_of


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    lines = Lines(path)
    for number in range(3):
        lines.write({"n": number})
    assert not path.exists()
    done = lines.finish()
    assert path.read_bytes() == b'{"n":0}\n{"n":1}\n{"n":2}\n'
    assert (done.rows, done.bytes, done.sha256) == (3, 24, hashlib.sha256(path.read_bytes()).hexdigest())
    assert hash_of(path) == (done.sha256, 24)
    assert path.stat().st_mode & 0o777 == 0o600
    lines.abandon()
    assert list(path.parent.iterdir()) == [path]


def test_an_abandoned_one_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    lines = Lines(path)
    lines.write({"text": "x" * 3_000_000})
    lines.abandon()
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["rows.jsonl"])


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LlmtapError, match="cannot be written"):
        Lines(tmp_path / "file" / "rows.jsonl")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "rows.jsonl")
    lines._placed.file.close()
    lines._placed.file = open("/dev/full", "wb", 0)  # noqa: SIM115
    with pytest.raises(LlmtapError, match="No space left"):
        for _ in range(5):
            lines.write({"text": "x" * 1_000_000})
        lines.finish()
    lines.abandon()
    assert os.listdir(tmp_path) == []


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    printed = Printed()
    printed.write({"n": 1})
    done = printed.finish()
    printed.abandon()
    assert capfdbinary.readouterr().out == b'{"n":1}\n'
    assert (done.name, done.rows, done.bytes) == ("-", 1, 8)
