from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmtap.core.config import Config
from llmtap.core.errors import ConfigError
from llmtap_launcher import session
from llmtap_launcher.cli import cli
from llmtap_launcher.cli.up import with_backends
from llmtap_launcher.plan import Setup
from llmtap_launcher.reconfigure import Source


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations that `up` would have run."""
    configs: list[Config] = []

    class Recorded:
        def __init__(self, setup: Setup, run: str, *, say: Any, source: Source | None) -> None:
            configs.append(setup.config)
            assert source is None or source.again() == source.read
            assert len(run) == 16

        async def run(self) -> None: ...

    monkeypatch.setattr(session, "Session", Recorded)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMTAP_CONFIG", raising=False)
    return configs


def test_dry_run_is_two_simulated_engines(ran: list[Config]) -> None:
    result = CliRunner().invoke(cli, ["up", "--dry-run", "--port", "9000"])
    assert result.exit_code == 0, result.output
    assert [backend.name for backend in ran[0].backends] == ["a", "b"]
    assert {backend.launch.model for backend in ran[0].backends if backend.launch} == {"sim-small"}
    assert ran[0].server.port == 9000


def test_servers_that_run_and_a_model(ran: list[Config]) -> None:
    args = ["up", "--backend", "http://127.0.0.1:8081", "--backend", "http://h:1", "--model", "m", "--engine", "sim", "--web"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert [backend.name for backend in ran[0].backends] == ["127.0.0.1:8081", "h:1", "sim"]
    assert ran[0].server.web


def test_the_command_line_beats_the_file(ran: list[Config], tmp_path: Path) -> None:
    (tmp_path / "llmtap.yaml").write_text("server: {port: 1234}\nbackends: [{name: x, url: 'http://127.0.0.1:1'}]\n")
    assert CliRunner().invoke(cli, ["up"]).exit_code == 0
    assert CliRunner().invoke(cli, ["up", "--dry-run", "--port", "1235"]).exit_code == 0
    assert [(config.server.port, [b.name for b in config.backends]) for config in ran] == [(1234, ["x"]), (1235, ["a", "b"])]


def test_nothing_to_serve_is_a_hint(ran: list[Config]) -> None:
    result = CliRunner().invoke(cli, ["up"])
    assert result.exit_code == 2
    for way in ("--dry-run", "--backend URL", "--model MODEL", "llmtap.yaml"):
        assert way in result.output
    assert ran == []


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--dry-run", "--model", "m"], 2, "--dry-run brings its own backends"),
        (["--backend", "127.0.0.1:1"], 1, "must be a URL like"),
        (["--backend", "http://h:1", "--backend", "http://h:1"], 1, "given twice"),
        (["--dry-run", "--workers", "2", "--web"], 1, "server.web: shows one process"),
        (["--dry-run", "--workers", "0"], 2, "--workers"),
        (["--dry-run", "--config", "none.yaml"], 1, "none.yaml: there is no such file"),
        (["--port", "99999"], 2, "99999"),
    ],
)
def test_mistakes(ran: list[Config], args: list[str], status: int, words: str) -> None:
    result = CliRunner().invoke(cli, ["up", *args])
    assert result.exit_code == status
    assert words in result.output
    assert "Traceback" not in result.output
    assert ran == []


def test_backends_of_the_file_stay_without_options() -> None:
    config = Config().with_urls(["http://127.0.0.1:1"])
    assert with_backends(config, dry_run=False, model=None, engine="vllm", urls=()) is config
    launched = with_backends(config, dry_run=False, model="org/m", engine="vllm", urls=())
    assert [backend.name for backend in launched.backends] == ["vllm"]
    with pytest.raises(ConfigError):
        with_backends(config, dry_run=False, model=None, engine="vllm", urls=("ftp://x",))


def test_an_open_gateway_is_refused_unless_insisted(ran: list[Config], tmp_path: Path) -> None:
    (tmp_path / "llmtap.yaml").write_text("server: {host: 0.0.0.0}\n")
    result = CliRunner().invoke(cli, ["up", "--dry-run"])
    assert result.exit_code == 1 and "0.0.0.0 is reachable from other machines and auth is off" in result.output
    assert ran == []
    assert CliRunner().invoke(cli, ["up", "--dry-run", "--insecure"]).exit_code == 0
    (tmp_path / "llmtap.yaml").write_text("server: {host: 0.0.0.0}\nauth: {enabled: true}\n")
    assert CliRunner().invoke(cli, ["up", "--dry-run"]).exit_code == 0
    assert [config.server.insecure for config in ran] == [True, False]
