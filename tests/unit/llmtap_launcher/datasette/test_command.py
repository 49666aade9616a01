from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from llmtap.core.errors import ConfigError, LlmtapError
from llmtap_launcher.datasette import command
from support.captures import Captures


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with Captures(tmp_path_factory.mktemp("captures")) as captures:
        return captures.db


def test_the_command_line_reads_only_and_is_live(db: Path) -> None:
    argv = command.datasette_argv(db, "127.0.0.1", 8001)
    assert argv[:5] == [sys.executable, "-P", "-m", "datasette", "serve"]
    assert argv[5] == str(db)
    assert not {"-i", "--immutable", "--create", "--cors", "--root", "--nolock"} & set(argv)
    settings = {argv[i + 1]: argv[i + 2] for i, word in enumerate(argv) if word == "--setting"}
    assert settings == {
        "sql_time_limit_ms": "5000",
        "facet_time_limit_ms": "1000",
        "suggest_facets": "off",
        "max_returned_rows": "5000",
        "default_page_size": "50",
        "default_cache_ttl": "0",
        "allow_download": "off",
    }


@pytest.mark.parametrize("flag", ["--plugins-dir", "--template-dir"])
def test_what_the_command_line_names_is_there(db: Path, flag: str) -> None:
    argv = command.datasette_argv(db, "127.0.0.1", 8001)
    assert Path(argv[argv.index(flag) + 1]).is_dir()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert command.is_loopback(host)
    command.check_host(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_off_loopback_is_refused_because_there_is_no_password(db: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="without a password"):
        command.datasette_argv(db, host, 8001)


def test_an_ipv6_host_stands_without_brackets_on_the_command_line_and_with_them_in_a_url(db: Path) -> None:
    argv = command.datasette_argv(db, "[::1]", 8001)
    assert argv[argv.index("--host") + 1] == "::1"
    assert command.base_url("::1", 8001) == command.base_url("[::1]", 8001) == "http://[::1]:8001"
    assert command.base_url("localhost", 80) == "http://localhost:80"


def test_the_environment_finds_our_packages_first_and_keeps_the_rest() -> None:
    env = command.datasette_env({"PYTHONPATH": os.pathsep.join(["/theirs", ""]), "HOME": "/h"})
    paths = env["PYTHONPATH"].split(os.pathsep)
    assert paths[-1] == "/theirs"
    assert {p.name for path in paths[:-1] for p in Path(path).iterdir()} >= {"llmtap", "llmtap_launcher"}
    assert env["HOME"] == "/h"
    assert command.datasette_env(env)["PYTHONPATH"] == env["PYTHONPATH"]


def test_a_capture_database_passes(db: Path) -> None:
    command.check_database(db)


def broken(db: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    text, empty, other, odd = folder / "text.db", folder / "empty.db", folder / "other.db", folder / "50%.db"
    text.write_text("not a database, and long enough to be read as one" * 40)
    empty.touch()
    with closing(sqlite3.connect(other)) as conn:
        conn.execute("create table exchanges(id)")
    shutil.copy(db, odd)
    locked = folder / "locked.db"
    shutil.copy(db, locked)
    (folder / "locked.db-wal").mkdir()  # as on a read-only file system: SQLite cannot open its companion files
    return {
        "missing": (folder / "none.db", "no such file"),
        "folder": (folder, "not a file"),
        "text": (text, "not an SQLite file"),
        "empty": (empty, "not a capture database"),
        "other": (other, "not a capture database"),
        "odd": (odd, "rename or copy the file"),
        "locked": (locked, "cannot be read: .*copy it to a folder that can be written"),
    }


@pytest.mark.parametrize("which", ["missing", "folder", "text", "empty", "other", "odd", "locked"])
def test_what_is_no_capture_database_is_named_in_one_line(db: Path, tmp_path: Path, which: str) -> None:
    path, message = broken(db, tmp_path)[which]
    with pytest.raises(LlmtapError, match=message) as raised:
        command.check_database(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


def test_checking_leaves_the_file_as_it_is(db: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(db, copy)
    before = copy.read_bytes()
    command.check_database(copy)
    assert copy.read_bytes() == before


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LlmtapError, match=f"port {port} on 127.0.0.1 is already in use"):
            command.check_port("127.0.0.1", port)
    command.check_port("127.0.0.1", port)
    command.check_port("127.0.0.1", 0)
