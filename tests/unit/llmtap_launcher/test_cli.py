"""The command group as a user meets it: `python -m llmtap_launcher`, exit codes, one-line errors."""

import importlib.util
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from llmtap import __version__
from llmtap.core.errors import LlmtapError
from llmtap_launcher.cli import COMMANDS, LazyGroup, cli


def llmtap(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmtap_launcher", *args], capture_output=True, text=True)


def test_version() -> None:
    done = llmtap("--version")
    assert (done.returncode, done.stdout) == (0, f"llmtap, version {__version__}\n")


def test_help_lists_every_command() -> None:
    done = llmtap("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"llmtap {name}" in result.output


def test_commands_have_the_names_of_their_table() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
    assert cli.list_commands(context) == list(COMMANDS)
    for module, _ in COMMANDS.values():
        assert importlib.util.find_spec(f"llmtap_launcher.cli.{module}") is not None


def test_wrong_usage_is_2() -> None:
    assert llmtap("no-such-command").returncode == 2
    done = llmtap("up", "--no-such-option")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_our_errors_are_one_line_and_1() -> None:
    @click.group(cls=LazyGroup)
    def group() -> None: ...

    @group.command()
    def breaks() -> None:
        raise LlmtapError("the reason and the mend")

    group.get_command = lambda context, name: breaks  # type: ignore[method-assign]
    result = CliRunner().invoke(group, ["breaks"])
    assert result.exit_code == 1
    assert result.output == "Error: the reason and the mend\n"


def test_starting_imports_nothing_heavy() -> None:
    heavy = {"mitmproxy", "pydantic", "rich", "httpx", "datasette", "starlette"}
    code = f"import sys; import llmtap_launcher.cli; print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
