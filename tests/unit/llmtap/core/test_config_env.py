"""The environment: variables that set keys, and variables inside values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.config import Config
from llmtap.core.config_env import interpolate, settings


def read(**env: str) -> dict[tuple[Any, ...], Any]:
    found, problems = settings(env, Config)
    assert problems == []
    return {s.path: s.value for s in found}


def wrong(**env: str) -> str:
    found, problems = settings(env, Config)
    assert found == []
    return "\n".join(map(str, problems))


def test_keys() -> None:
    assert read(LLMTAP_SERVER__PORT="9000") == {("server", "port"): "9000"}
    assert read(LLMTAP_LOGGING__JSON="false") == {("logging", "json"): "false"}
    assert read(LLMTAP_STORE__PATH="null") == {("store", "path"): None}
    assert read(LLMTAP_STORE__PATH="[x]") == {("store", "path"): "[x]"}


def test_lists_and_mappings_are_yaml_or_json() -> None:
    assert read(LLMTAP_ROUTING__ALLOW_PATHS="[/a, /b]") == {("routing", "allow_paths"): ["/a", "/b"]}
    assert read(LLMTAP_ROUTING__ALIASES='{"gpt-4": "m"}') == {("routing", "aliases"): {"gpt-4": "m"}}
    assert read(LLMTAP_BACKENDS='[{"name": "a", "url": "http://h"}]') == {("backends",): [{"name": "a", "url": "http://h"}]}
    assert read(LLMTAP_SERVER="port: 1") == {("server",): {"port": 1}}


def test_deeper() -> None:
    assert read(LLMTAP_BACKENDS__0__LAUNCH__MODEL="7") == {("backends", 0, "launch", "model"): "7"}
    assert read(LLMTAP_BACKENDS__12__API_KEY="12345") == {("backends", 12, "api_key"): "12345"}
    assert read(LLMTAP_ROUTING__ALIASES__GPT_4="m") == {("routing", "aliases", "GPT_4"): "m"}
    assert read(LLMTAP_BACKENDS__0__LAUNCH__ARGS__dtype="auto") == {("backends", 0, "launch", "args", "dtype"): "auto"}
    assert read(LLMTAP_BACKENDS__0__LAUNCH__ARGS__seed="5") == {("backends", 0, "launch", "args", "seed"): 5}
    assert read(LLMTAP_BACKENDS__0__LAUNCH__ARGS__x="a: [") == {("backends", 0, "launch", "args", "x"): "a: ["}


def test_sections_come_before_what_is_in_them() -> None:
    found, _ = settings({"LLMTAP_SERVER__PORT": "2", "LLMTAP_SERVER": "{port: 1}"}, Config)
    assert [s.variable for s in found] == ["LLMTAP_SERVER", "LLMTAP_SERVER__PORT"]


def test_other_variables_are_left_alone() -> None:
    assert read(LLMTAP_CONFIG="x", LLMTAP_DEBUG="1", LLMTAP_="", HOME="/", SERVER__PORT="1") == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LLMTAP_SERVER__PROT", "did you mean LLMTAP_SERVER__PORT?"),
        ("LLMTAP_SEVER__PORT", "did you mean LLMTAP_SERVER__PORT?"),
        ("LLMTAP_BACKENDS__0__API_KYE", "did you mean LLMTAP_BACKENDS__0__API_KEY?"),
        ("LLMTAP_BACKENDS__X__URL", "no such setting"),
        ("LLMTAP_SERVER__PORT__X", "no such setting"),
        ("LLMTAP_SERVER__", "no such setting"),
        ("LLMTAP___PORT", "no such setting"),
        ("LLMTAP_XYZZY__Q", "see docs/configuration.md"),
    ],
)
def test_unknown_settings(name: str, says: str) -> None:
    text = wrong(**{name: "sk-hidden"})
    assert text.startswith(f"{name}: no such setting") and says in text and "hidden" not in text


def test_an_unreadable_list_is_a_problem_without_its_text() -> None:
    text = wrong(LLMTAP_BACKENDS="[{sk-hidden")
    assert "cannot be read as YAML or JSON" in text and "hidden" not in text


ENV = {"A": "one", "B": "two", "EMPTY": ""}


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("${env.A}", "one"),
        ("x-${env.A}-${env.B}", "x-one-two"),
        ("os.environ/B", "two"),
        ("${env.EMPTY}", ""),
        ("pay $5", "pay $5"),
        ("a os.environ/B", "a os.environ/B"),
    ],
)
def test_values_from_variables(value: str, becomes: str) -> None:
    tree = {"k": [{"v": value, "n": 1}]}
    touched = dict(interpolate(tree, ENV))
    assert tree == {"k": [{"v": becomes, "n": 1}]}
    assert touched == ({("k", 0, "v"): None} if becomes != value else {})


def test_a_variable_that_names_itself_is_still_from_the_environment() -> None:
    tree = {"v": "${env.A}"}
    assert dict(interpolate(tree, {"A": "${env.A}"})) == {("v",): None}
    assert tree == {"v": "${env.A}"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${env.NOPE}", "the environment variable NOPE is not set"),
        ("os.environ/NOPE", "the environment variable NOPE is not set"),
        ("${env.}", "names no environment variable"),
        ("${env.a b}", "names no environment variable"),
        ("os.environ/", "names no environment variable"),
        ("x ${env.A", "without its closing brace"),
        ("${A}", "write ${env.A}"),
        ("$MY_KEY", "write ${env.MY_KEY}"),
        ("${env.NOPE}${env.NOPE}", "NOPE is not set"),
    ],
)
def test_mistakes(value: str, says: str) -> None:
    ((path, message),) = interpolate({"v": value}, ENV)
    assert path == ("v",) and message is not None and says in message
    assert message.count("is not set") <= 1


@given(st.text(st.sampled_from(list("${}env.A/os ir")), max_size=30))
def test_any_text_is_replaced_or_refused(text: str) -> None:
    tree = {"v": text}
    for _, wrong_ in interpolate(tree, ENV):
        assert wrong_ is None or wrong_
    assert isinstance(tree["v"], str)
