"""Problems in words: one line each, nothing secret, the nearest key."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from llmtap.core.config import Backend, Config, Launch
from llmtap.core.config_problems import (
    Origin,
    Problem,
    all_keys,
    bare,
    below,
    config_error,
    dotted,
    keys_of,
    message_for,
    near,
    printable,
    unknown_key,
    walk,
)

FILE = Origin("f.yaml", 3, literal=True)


def test_a_problem_is_file_line_key_message() -> None:
    assert str(Problem(FILE, "server.port", "is wrong; mend it")) == "f.yaml:3: server.port: is wrong; mend it"
    assert str(Problem(Origin("f.yaml"), "", "is missing")) == "f.yaml: is missing"


@given(st.text(), st.text(), st.text())
def test_a_problem_is_one_printable_line(source: str, key: str, message: str) -> None:
    assert str(Problem(Origin(source, 1), key, message)).isprintable()


def test_line_breaks_are_escaped() -> None:
    assert printable("a\nb\x1b[31m ä") == "a\\nb\\x1b[31m ä"


def test_the_exception_has_a_line_each_and_none_twice() -> None:
    a, b = Problem(FILE, "a", "x"), Problem(FILE, "b", "y")
    error = config_error([a, b, a])
    assert str(error) == "f.yaml:3: a: x\nf.yaml:3: b: y"
    assert error.problems == (a, b)


def test_paths_are_written_as_users_do() -> None:
    assert dotted(()) == ""
    assert dotted(("backends", 0, "launch", "model")) == "backends[0].launch.model"
    assert len(dotted(("x" * 500,))) == 80


def test_annotations() -> None:
    assert bare(Annotated[int, Field(ge=0)] | None) is int
    assert bare(int | str) == int | str
    assert below(Config, "backends") == tuple[Backend, ...]
    assert below(below(Config, "backends"), 0) is Backend
    assert below(Backend, "launch") is Launch
    assert below(keys_of(Launch)["env"], "ANY") is str
    assert below(Config, "nothing") is None
    assert below(int, "x") is None
    assert below(below(Config, "backends"), "x") is None


def test_all_keys_are_listed_in_order() -> None:
    keys = list(all_keys(Config))
    assert keys[:3] == ["server", "server.host", "server.port"]
    assert {"backends[].launch.model", "auth.keys[].key_sha256", "logging.json", "prices[].model"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_near() -> None:
    assert near("prot", ["port", "host"]) == "port"
    assert near("Max-Body-MB", ["max_body_mb"]) == "max_body_mb"
    assert near("zzz", ["port"]) is None


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (("server", "prot"), 'no such key; did you mean "port"?'),
        (("sever",), 'no such key; did you mean "server"?'),
        (("backends", 0, "launch", "modle"), 'no such key; did you mean "model"?'),
        (("retries",), "no such key here; did you mean routing.retries?"),
        (("port",), "no such key here; did you mean server.port or datasette.port?"),
        (("datasette", "zzz"), "no such key; the keys here are enabled, host, port, password"),
    ],
)
def test_unknown_keys(path: tuple[Any, ...], says: str) -> None:
    assert unknown_key(Config, path) == says


def message(tree: dict[str, Any], origin: Origin = FILE) -> str:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(tree)
    error = caught.value.errors()[0]
    path, value, _ = walk(tree, error["loc"])
    return message_for(error, Config, path, value, origin)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"server": {"port": "x"}}, "must be a whole number, not x"),
        ({"server": {"port": 1.5}}, "must be a whole number, not 1.5"),
        ({"server": {"port": None}}, "must be a whole number, not null"),
        ({"server": {"port": 70000}}, "must be at most 65535, not 70000"),
        ({"server": {"port": -1}}, "must be at least 0, not -1"),
        ({"server": {"port": True}}, "must be a number, not true or false"),
        ({"server": {"web": "maybe"}}, "must be true or false, not maybe"),
        ({"server": {"web": 5}}, "must be true or false, not 5"),
        ({"server": 5}, "must be a mapping, lines of `key: value`, not 5"),
        ({"server": []}, "must be a mapping, lines of `key: value`"),
        ({"backends": {}}, "must be a list, like [a, b]"),
        ({"backends": "a"}, "must be a list, like [a, b], not a"),
        ({"backends": [{"url": "http://h"}]}, "is missing; add it"),
        ({"backends": [{"name": 5, "url": "http://h"}]}, "must be text, not 5; put it in quotes"),
        ({"capture": {"segment_mb": 0}}, "must be greater than 0.0, not 0"),
        ({"capture": {"segment_mb": "x"}}, "must be a number, not x"),
        ({"capture": {"segment_mb": float("nan")}}, "must be a finite number, not nan"),
        ({"capture": {"dir": 5}}, "must be a path, not 5; put it in quotes"),
        ({"prices": [{"model": "m", "valid_from": "x"}]}, "must be a date, like 2026-01-31, not x"),
        ({"routing": {"policy": "p3c"}}, 'p2c, prefix_hash, not p3c; did you mean "p2c"?'),
        ({"routing": {"aliases": []}}, "must be a mapping, lines of `key: value`"),
        ({"server": {"port": "9" * 5000}}, "must be a whole number of reasonable size"),
    ],
)
def test_plain_words(tree: dict[str, Any], says: str) -> None:
    assert message(tree).endswith(says)


@pytest.mark.parametrize("tree", [{"server": {"port": "sk-1"}}, {"routing": {"policy": "sk-1"}}, {"server": {"web": "sk-1"}}])
def test_values_from_elsewhere_are_not_shown(tree: dict[str, Any]) -> None:
    assert "sk-1" in message(tree)
    assert "sk-1" not in message(tree, Origin("LLMTAP_X"))


@pytest.mark.parametrize(
    "tree",
    [
        {"backends": [{"name": "a", "url": "http://h", "api_key": 12345}]},
        {"backends": [{"name": "a", "url": 12345}]},
        {"auth": {"keys": [{"name": "k", "key_sha256": 12345}]}},
        {"rate_limit": {"storage": 12345}},
        {"backends": [{"name": "a", "launch": {"model": "m", "env": {"T": True}}}]},
    ],
)
def test_secret_values_are_never_shown(tree: dict[str, Any]) -> None:
    assert "12345" not in message(tree) and "true" not in message(tree)


def test_walk_stops_where_the_document_does() -> None:
    tree = {"a": [{"b": 1}]}
    assert walk(tree, ("a", 0, "b")) == (("a", 0, "b"), 1, True)
    assert walk(tree, ("a", 0, "b", "[key]")) == (("a", 0, "b"), 1, False)
    assert walk(tree, ("a", 5)) == (("a",), [{"b": 1}], False)
