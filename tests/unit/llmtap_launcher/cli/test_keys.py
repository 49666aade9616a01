import json
from hashlib import sha256

import pytest
import yaml
from click.testing import CliRunner

from llmtap.core.config import Config
from llmtap_launcher.cli import cli


def test_a_new_key_and_its_line() -> None:
    result = CliRunner().invoke(cli, ["keys", "new", "production"])
    assert result.exit_code == 0, result.output
    key = result.output.splitlines()[0]
    assert key.startswith("sk-llmtap-") and len(key) == 53
    line = next(line for line in result.output.splitlines() if line.startswith("    - {"))
    config = Config.model_validate(yaml.safe_load(f"auth:\n  enabled: true\n  keys:\n{line}"))
    assert config.auth.keys[0].name == "production" and config.auth.keys[0].digest == sha256(key.encode()).digest()


def test_no_two_are_the_same_and_json() -> None:
    made = [json.loads(CliRunner().invoke(cli, ["keys", "new", "a", "--json"]).output) for _ in range(2)]
    assert made[0]["key"] != made[1]["key"]
    assert made[0]["key_sha256"] == sha256(made[0]["key"].encode()).hexdigest()


@pytest.mark.parametrize("name", ["two words", "", "a/b"])
def test_a_name_that_is_none(name: str) -> None:
    result = CliRunner().invoke(cli, ["keys", "new", name])
    assert (
        result.exit_code == 1 and "NAME must be 1 to 64 of the characters" in result.output and "sk-llmtap" not in result.output
    )
