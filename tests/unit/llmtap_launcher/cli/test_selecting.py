"""The options by which exchanges are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from llmtap_launcher.cli.common import config_option
from llmtap_launcher.cli.selecting import (
    database_of,
    format_option,
    opened,
    print_json,
    selected,
    selection_options,
    source_option,
)
from support.captures import Captures, weather


@click.command()
@config_option
@source_option
@selection_options
@format_option
def chosen(config_path: Path | None, source: Path | None, format: str, **options: Any) -> None:
    selection = selected(**options)
    with opened(source, config_path) as (conn, config):
        (count,) = conn.execute("SELECT count(*) FROM exchanges").fetchone()
        click.echo(f"{selection} {count} {format} {database_of(source, config)}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with Captures(tmp_path / "data") as captures:
        weather(captures)
    return tmp_path / "data"


def run(*args: str) -> Any:
    return CliRunner().invoke(chosen, args)


def test_everything(data: Path) -> None:
    done = run(*"--since 2026-11-01 --until 2026-11-02T12:00Z --model a* --model b --key ci --backend x --tag t --tag u".split(),
               "--format", "jsonl", "--log-dir", str(data))  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "Selection(since='2026-11-01T00:00:00.000Z', until='2026-11-02T12:00:00.000Z', models=('a*', 'b'), keys=('ci',), "
        f"backends=('x',), tags=('t', 'u'), uids=None) 3 jsonl {data}\n"
    )


def test_the_configurations_database(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "llmtap.yaml"
    config.write_text(f"capture: {{dir: {data}}}\n")
    assert f" 3 table {data / 'capture.db'}" in run("--config", str(config)).stdout


def test_what_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("json", {"total": "Zürich"}, [])
    assert capsys.readouterr().out == '{\n  "total": "Zürich"\n}\n'
    print_json("jsonl", {"total": 1}, iter([{"a": 1}, {"b": None}]))
    assert capsys.readouterr().out == '{"a":1}\n{"b":null}\n'
    print_json("jsonl", [], [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--since", "soon"], "'soon' is no time"),
        (["--since", "1h", "--until", "2h"], "is not after --since"),
        (["--format", "xml"], "xml"),
    ],
)
def test_wrong_usage(args: list[str], words: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert words in done.stderr
