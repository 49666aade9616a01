"""The pages that come from the code are up to date, and what they show is true."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from llmtap.core.config import Config
from llmtap.core.config_load import load
from llmtap.core.config_problems import all_keys
from llmtap.core.config_support import NOT_YET
from llmtap.core.config_yaml import read
from llmtap_launcher.cli import cli

DOCS = Path(__file__).parents[3] / "docs"
EXAMPLE = DOCS / "llmtap.example.yaml"
PAGE = DOCS / "configuration.md"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = ["llmtap.example.yaml", "llmtap.schema.json"]
GENERATED += ["configuration.md", "commands.md", "metrics.md", "protocols.md", "schema.md"]


@pytest.mark.parametrize("name", GENERATED)
def test_nothing_is_out_of_date(generate: ModuleType, name: str) -> None:
    assert (DOCS / name).read_text() == generate.outputs()[DOCS / name], "run `make docs`"


def test_check_says_what_is_out_of_date(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "page.txt"
    page.parent.mkdir()
    monkeypatch.setattr(generate, "DOCS", page.parent)
    monkeypatch.setattr(generate, "FILES", {"page.txt": lambda: "new"})
    monkeypatch.setattr(generate, "PARTS", {})
    page.write_text("old")
    assert generate.main(["--check"]) == 1 and page.read_text() == "old"
    assert capsys.readouterr().out == "docs/page.txt: out of date; run make docs\n"
    assert generate.main([]) == 0 and page.read_text() == "new"
    assert generate.main(["--check"]) == 0


def test_a_part_needs_its_marks(generate: ModuleType) -> None:
    parts = {"x": lambda: "new"}
    assert (
        generate.filled("a\n<!-- generated: x -->\nold\n<!-- end -->\nb", parts)
        == "a\n<!-- generated: x -->\n\nnew\n\n<!-- end -->\nb"
    )
    with pytest.raises(ValueError, match="occur 0 times"):
        generate.filled("a", parts)


# ---- the example


def uncommented(text: str) -> str:
    """The example with its commented items (`keys: []`, then `# - name: ...`) switched on."""
    text = re.sub(r"^( *)([a-z0-9_]+): \[\](?=\n\1#  )", r"\1\2:", text, flags=re.MULTILINE)
    return re.sub(r"^( *)# (?=  +(?:#|- |[a-z0-9_]+: ))", r"\1", text, flags=re.MULTILINE)


def test_the_example_is_the_defaults() -> None:
    config = load(EXAMPLE, {}, {})
    assert config.model_copy(update={"backends": ()}) == Config()
    a, b = config.backends
    given = {"name", "url"}
    assert a.model_dump(exclude=given) == type(a).model_validate({"name": "x", "url": "http://x"}).model_dump(exclude=given)
    assert b.launch is not None
    plain = type(b.launch).model_validate({"model": "m"}).model_dump(exclude={"model", "args", "env"})
    assert b.launch.model_dump(exclude={"model", "args", "env"}) == plain


def test_the_example_has_every_key() -> None:
    document = read(uncommented(EXAMPLE.read_text()))
    assert document.errors == []
    keys = {re.sub(r"\.\d+", "[]", ".".join(map(str, path))) for path in document.lines if isinstance(path[-1], str)}
    assert set(all_keys(Config)) - keys == set()
    config = Config.model_validate(document.tree)
    assert len(config.auth.keys) == len(config.prices) == 1


def test_every_key_of_the_example_has_a_comment() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for above, line in pairwise(lines):
        if re.match(r"(# )? *(- )?[a-z0-9_]+:", line) and not re.match(r" +launch:$", line):
            assert above.lstrip().startswith("#"), line


# ---- the schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((DOCS / "llmtap.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_example_validates(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(read(EXAMPLE.read_text()).tree)
    validator.validate(read(uncommented(EXAMPLE.read_text())).tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"server": {"port": "${env.PORT}"}},
        {"server": {"compat_port": "os.environ/PORT", "web": "${env.WEB}"}},
        {"backends": [{"name": "${env.N}", "url": "${env.U}", "models": ["${env.M}"]}]},
        {"backends": [{"name": "a", "launch": {"model": "m", "args": {"x": [1, {"y": None}]}, "env": {"A": 0}}}]},
        {"logging": {"level": "${env.L}"}, "routing": {"direct_ports": ["${env.P}"]}},
        {},
    ],
)
def test_the_schema_takes_what_the_loader_takes(validator: jsonschema.Draft202012Validator, tree: dict[str, Any]) -> None:
    validator.validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"server": {"prot": 1}},
        {"sever": {}},
        {"server": {"port": 70000}},
        {"server": {"port": "x"}},
        {"server": {"workers": 0}},
        {"backends": [{"url": "http://h"}]},
        {"backends": [{"name": "a b", "url": "http://h"}]},
        {"backends": [{"name": "a", "url": "h:1"}]},
        {"routing": {"policy": "random"}},
        {"auth": {"keys": [{"name": "k", "key_sha256": "x"}]}},
        {"capture": {"segment_mb": 0}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(validator: jsonschema.Draft202012Validator, tree: dict[str, Any]) -> None:
    assert not validator.is_valid(tree)


def test_every_key_of_the_schema_has_a_description_where_it_is_defined() -> None:
    schema = json.loads((DOCS / "llmtap.schema.json").read_text())
    for section in schema["$defs"].values():
        for name, value in section.get("properties", {}).items():
            assert value.get("description") or "$ref" in value, name


# ---- the page


def test_the_page_marks_what_is_not_available() -> None:
    page = PAGE.read_text()
    reference = page[page.index("<!-- generated: reference -->") :]
    marked: set[str] = set()
    section = ""
    for line in reference.splitlines():
        if heading := re.match(r"### `(.*)`( \(not available yet\))?$", line):
            lists = ("backends", "prices", "auth.keys", "rate_limit.models", "filters")
            section = heading[1] if heading[1] not in lists else f"{heading[1]}.*"
            if heading[2]:
                marked.add(heading[1])
        elif (row := re.match(r"\| `(\w+)`", line)) and "not available yet" in line:
            marked.add(f"{section}.{row[1]}")
    assert marked - {"auth.keys"} == set(NOT_YET)


@pytest.mark.parametrize("name", ["valid", "wrong"])
def test_the_commands_of_the_page_print_what_it_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    found = re.search(rf"<!-- check: {name} -->\n```\n\$ (.*)\n((?:.*\n)*?)```", page)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    first = re.search(r"```yaml\n((?:.*\n)*?)```", page)
    assert first is not None
    Path("llmtap.yaml").write_text(first[1])
    wrong = first[1].replace("8081", "8081/v1")
    Path("wrong.yaml").write_text(f"server:\n  prot: 9000\n{wrong}")
    env = {"VLLM_API_KEY": "sk-1"} if name == "valid" else {}
    result = CliRunner().invoke(cli, shlex.split(found[1])[1:], env=env)
    assert result.output == found[2]
    assert result.exit_code == (0 if name == "valid" else 1)


def test_no_family_under_vllms_names_differs_from_vllms() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert "DIFFERS" not in page and page.count("| same") == 19
