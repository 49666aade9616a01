from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from llmtap_launcher.cli.sim import sim
from llmtap_launcher.sim import faults, server
from llmtap_launcher.sim.faults import parse_rule
from llmtap_launcher.sim.simulation import Settings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `run` was given; it serves nothing."""
    given: list[Settings] = []
    monkeypatch.setattr(server, "run", lambda s: given.append(s) or 0)
    return given


def test_defaults_are_those_of_the_settings(settings: list[Settings]) -> None:
    assert CliRunner().invoke(sim, []).exit_code == 0
    assert settings == [Settings()]


def test_every_option(settings: list[Settings]) -> None:
    line = (
        "--port 9000 --host ::1 --model a --model b --tokens-per-second 0 --ttft-ms 5 --fail stall=2:3 --fail http_500:0.5 "
        "--api-key k --max-model-len 2048 --max-num-seqs 4 --reasoning --enable-request-id-headers --shutdown-timeout 1 --seed 7"
    )
    assert CliRunner().invoke(sim, line.split()).exit_code == 0
    wanted: dict[str, Any] = {
        "port": 9000,
        "host": "::1",
        "models": ("a", "b"),
        "tokens_per_second": 0.0,
        "ttft_ms": 5.0,
        "rules": (parse_rule("stall=2:3"), parse_rule("http_500:0.5")),
        "api_key": "k",
        "max_model_len": 2048,
        "max_num_seqs": 4,
        "reasoning": True,
        "request_id_headers": True,
        "shutdown_timeout_s": 1.0,
        "seed": 7,
    }
    assert settings == [Settings(**wanted)]


def test_the_exit_status_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "run", lambda s: 1)
    assert CliRunner().invoke(sim, []).exit_code == 1


@pytest.mark.parametrize(
    "line", ["--fail nope", "--fail stall:x", "--port 70000", "--tokens-per-second -1", "--unknown", "--max-model-len 1"]
)
def test_wrong_usage_is_2_and_one_clear_line(settings: list[Settings], line: str) -> None:
    result = CliRunner().invoke(sim, line.split())
    assert (result.exit_code, settings) == (2, [])
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_help_shows_an_example_and_every_fault() -> None:
    text = CliRunner().invoke(sim, ["--help"]).output
    assert "llmtap sim --port" in text
    assert all(kind in text and description in text for kind, description in faults.DESCRIPTIONS.items())
