"""`llmtap check`: what it prints where, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmtap.core.config_load import load
from llmtap_launcher.cli.check import check

VALID = "backends:\n  - {name: a, url: 'http://127.0.0.1:8081', api_key: sk-hidden, models: [m]}\n"


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMTAP_CONFIG", raising=False)
    return Path("llmtap.yaml")


def run(*args: str, **env: str) -> Result:
    result = CliRunner().invoke(check, args, env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_valid(file: Path) -> None:
    file.write_text(VALID + "  - {name: b, launch: {engine: sim, model: sim-small}}\n")
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "llmtap.yaml: ok\n"
        "  listening  http://127.0.0.1:8000\n"
        "  backend    a at http://127.0.0.1:8081\n"
        "  backend    b starts sim sim-small\n"
        "  captures   ./llmtap-data\n"
        "  on         capture, datasette, metrics, request_log\n"
    )


def test_no_file_is_the_defaults_with_a_warning(file: Path) -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stdout.startswith("built-in defaults: ok\n")
    assert result.stderr.startswith("warning: backends: none")


def test_everything_off(file: Path) -> None:
    off = "".join(f"{section}: {{enabled: false}}\n" for section in ("capture", "datasette", "metrics"))
    file.write_text(f"{VALID}server: {{host: '::1'}}\n{off}logging: {{request_log: false}}\n")
    assert run().stdout.splitlines()[1:] == [
        "  listening  http://[::1]:8000",
        "  backend    a at http://127.0.0.1:8081",
        "  on         nothing",
    ]


def test_wrong(file: Path) -> None:
    file.write_text("server:\n  prot: 1\nlogging: {level: x}\n")
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        'llmtap.yaml:2: server.prot: no such key; did you mean "port"?',
        "llmtap.yaml:3: logging.level: must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not x",
    ]


def test_the_environment_counts(file: Path) -> None:
    file.write_text(VALID)
    assert "http://127.0.0.1:9000" in run(LLMTAP_SERVER__PORT="9000").stdout
    result = run(LLMTAP_SERVER__PORT="x")
    assert (result.exit_code, result.stderr) == (1, "LLMTAP_SERVER__PORT: server.port: must be a whole number\n")


def test_a_missing_file(file: Path) -> None:
    result = run("--config", "nowhere.yaml")
    assert result.exit_code == 1 and result.stderr.startswith("nowhere.yaml: there is no such file")


def test_warnings_do_not_fail(file: Path) -> None:
    file.write_text(VALID + "server: {host: 0.0.0.0}\n")
    result = run()
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: server.host: 0.0.0.0 is reachable from other machines and auth is off")


def test_json(file: Path) -> None:
    file.write_text(VALID + "server: {host: 0.0.0.0}\n")
    result = run("--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    warnings = answer.pop("warnings")
    assert [w["key"] for w in warnings] == ["server.host"]
    assert answer == {
        "ok": True,
        "file": "llmtap.yaml",
        "problems": [],
        "listening": "http://0.0.0.0:8000",
        "backends": [{"name": "a", "url": "http://127.0.0.1:8081", "kind": "openai", "models": ["m"], "engine": None}],
        "features": ["capture", "datasette", "metrics", "request_log"],
    }
    assert json.loads(run("--json", "--print").stdout)["config"]["server"]["port"] == 8000


def test_json_of_problems(file: Path) -> None:
    file.write_text("server:\n  prot: 1\n")
    result = run("--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout) == {
        "ok": False,
        "file": "llmtap.yaml",
        "problems": [
            {"source": "llmtap.yaml", "line": 2, "key": "server.prot", "message": 'no such key; did you mean "port"?'},
        ],
    }


def test_print_is_a_configuration_again_without_its_secrets(file: Path) -> None:
    file.write_text(VALID)
    result = run("--print", LLMTAP_SERVER__PORT="9000")
    assert "hidden" not in result.stdout and "compat_port: null\n" in result.stdout
    again = Path("again.yaml")
    again.write_text(result.stdout)
    config = load(again, {}, {})
    assert config.server.port == 9000 and config.backends[0].models == ("m",)


def test_wrong_usage(file: Path) -> None:
    assert run("--nonsense").exit_code == 2
    assert run("extra").exit_code == 2


def test_help_has_an_example(file: Path) -> None:
    assert "Example:" in run("--help").stdout
