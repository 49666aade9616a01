from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path

import pytest

from support.captures import Captures
from support.command import llmtap


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Captures(tmp_path_factory.mktemp("captures")) as captures:
        return captures.folder


class Started(Exception):
    """Stands for the process that the command becomes."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []

    def execve(path: str, argv: list[str], env: dict[str, str]) -> None:
        assert path == sys.executable and "PYTHONPATH" in env
        seen.append(argv)
        raise Started

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("LLMTAP_CONFIG", raising=False)
    return seen


browse = partial(llmtap, "browse")


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


@pytest.mark.parametrize("inside", ["capture.db", "."])
def test_a_file_or_its_folder_needs_no_configuration(
    folder: Path, started: list[list[str]], inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llmtap.yaml").write_text("server: [broken")
    result = browse(folder / inside, "--port", 0)
    assert isinstance(result.exception, Started)
    (argv,) = started
    assert Path(argv[5]) == folder / "capture.db"
    assert option(argv, "--host") == "127.0.0.1" and int(option(argv, "--port")) > 0
    assert f"http://127.0.0.1:{option(argv, '--port')}/" in result.output


def test_without_a_file_the_configuration_decides(
    folder: Path, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llmtap.yaml").write_text(f"capture: {{dir: {folder}}}\ndatasette: {{host: localhost, port: 0}}\n")
    assert isinstance(browse().exception, Started)
    assert Path(started[0][5]) == folder / "capture.db" and option(started[0], "--host") == "localhost"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::"])
def test_off_loopback_is_wrong_usage(folder: Path, started: list[list[str]], host: str) -> None:
    result = browse(folder, "--host", host)
    assert result.exit_code == 2 and started == []
    assert "without a password" in result.output and result.output.count("\n") == 1


def test_a_taken_port_fails_in_one_line(folder: Path, started: list[list[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = browse(folder, "--port", taken.getsockname()[1])
    assert result.exit_code == 1 and started == []
    assert "already in use; choose another with --port" in result.output and result.output.count("\n") == 1


def test_files_that_are_no_captures_fail_in_one_line(tmp_path: Path, started: list[list[str]]) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    for path, message in (
        (tmp_path / "none.db", "no such file"),
        (tmp_path / "text", "not an SQLite file"),
        (tmp_path, "no such file"),
    ):
        result = browse(path)
        assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1
    assert started == []


def test_nothing_captured_yet_says_what_to_do(tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = browse()
    assert result.exit_code == 1 and "llmtap up" in result.output and result.output.count("\n") == 1


def test_help_has_an_example() -> None:
    result = browse("--help")
    assert result.exit_code == 0 and "llmtap browse backup.db" in result.output
