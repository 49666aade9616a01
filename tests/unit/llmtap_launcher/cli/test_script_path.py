from pathlib import Path

from click.testing import CliRunner

from llmtap_launcher.cli import cli


def test_prints_the_path_of_the_script() -> None:
    result = CliRunner().invoke(cli, ["script-path"])
    assert result.exit_code == 0
    path = Path(result.output.removesuffix("\n"))
    assert path.name == "gateway.py"
    assert "addons" in path.read_text()
