"""The checked types: what they take, what they normalise, and that they say what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmtap.core import config_types as t


def accept(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)


def refuse(kind: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        accept(kind, value)
    return str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("given_url", "kept"),
    [
        ("http://127.0.0.1:8081", "http://127.0.0.1:8081"),
        ("http://127.0.0.1:8081/", "http://127.0.0.1:8081"),
        ("HTTPS://GPU.Example.org", "https://gpu.example.org"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://vllm_server:8000", "http://vllm_server:8000"),
        ("unix:///run/vllm.sock", "unix:///run/vllm.sock"),
        ("unix:/run/vllm.sock", "unix:///run/vllm.sock"),
        ("http+unix://%2Frun%2Fvllm.sock", "unix:///run/vllm.sock"),
        ("http+unix://%2Frun%2Fvllm.sock/", "unix:///run/vllm.sock"),
    ],
)
def test_urls_are_normalised(given_url: str, kept: str) -> None:
    assert accept(t.BackendUrl, given_url) == kept


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost:8081/v1", "leave out /v1"),
        ("http://localhost:8081/v1/", "leave out /v1"),
        ("http://localhost:8081/v1/chat/completions", "leave out /v1"),
        ("http://localhost:8081/proxy", "leave out the path"),
        ("http://localhost:8081/?x=1", "leave out ? and #"),
        ("http://user:hunter2@localhost:8081", "api_key"),
        ("localhost:8081", "scheme is missing"),
        ("ftp://localhost", "must start with http"),
        ("http://:8081", "name a host"),
        ("http://localhost:0", "from 1 to 65535"),
        ("http://localhost:99999", "from 1 to 65535"),
        ("http://local host", "white space"),
        ("http://[::1", "IPv6"),
        ("unix://run/vllm.sock", "absolute path"),
        ("unix:///", "absolute path"),
        ("http+unix://run", "absolute path"),
        ("unix:///" + "x" * 107, "107 bytes"),
    ],
)
def test_wrong_urls_say_what_to_write(url: str, says: str) -> None:
    message = refuse(t.BackendUrl, url)
    assert says in message
    assert "hunter2" not in message


@given(st.text(max_size=40) | st.builds("http://{}".format, st.text(max_size=30)))
def test_any_text_is_a_url_or_a_value_error(text: str) -> None:
    try:
        checked = t.check_url(text)
    except ValueError:
        return
    assert t.check_url(checked) == checked


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("kind", [t.Port, t.Positive, t.Duration, t.Size, t.Whole])
def test_booleans_are_no_numbers(kind: Any, value: bool) -> None:
    assert "not true or false" in refuse(kind, value)


def test_numbers_have_bounds() -> None:
    assert accept(t.Port, 0) == 0
    assert accept(t.Port, "65535") == 65535
    for kind, value in [
        (t.Port, 65536),
        (t.Port, -1),
        (t.OpenPort, 0),
        (t.Positive, 0),
        (t.Count, -1),
        (t.Duration, 0),
        (t.DurationOrNone, -0.1),
        (t.Size, 1e9),
    ]:
        refuse(kind, value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "localhost", "my-host.example.org", "under_score"])
def test_hosts(host: str) -> None:
    assert accept(t.Host, host) == host


def test_an_address_may_stand_in_brackets() -> None:
    assert accept(t.Host, "[::1]") == "::1"


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("localhost:80", "port has its own key"),
        ("http://localhost", "leave out the scheme"),
        ("", "host name"),
        ("a b", "host name"),
        ("-x", "host name"),
    ],
)
def test_wrong_hosts(host: str, says: str) -> None:
    assert says in refuse(t.Host, host)


def test_names_can_label_metrics() -> None:
    assert accept(t.Name, "gpu-1:8081") == "gpu-1:8081"
    for name in ["", "a b", 'a"b', "ä", "a\n", "x" * 65]:
        assert "labels metrics" in refuse(t.Name, name)


def test_a_key_hash_is_kept_in_lower_case() -> None:
    assert accept(t.Sha256, "AB" * 32) == "ab" * 32
    assert "64 hexadecimal digits" in refuse(t.Sha256, "ab")


@pytest.mark.parametrize("value", ["", "  ", "sk-a\n", "sk a", "schlüssel"])
def test_secrets_must_fit_a_header(value: str) -> None:
    message = refuse(t.Secret, value)
    assert not value.strip() or value.strip() not in message


@pytest.mark.parametrize("value", ["memory://", "redis://h:6379/0", "rediss://u:p@h/0"])
def test_storage(value: str) -> None:
    assert accept(t.StorageUrl, value) == value


@pytest.mark.parametrize("value", ["memory", "postgres://h", "redis://", "redis://h:x"])
def test_wrong_storage(value: str) -> None:
    refuse(t.StorageUrl, value)


def test_paths_expand_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert accept(t.FilePath, "~/data") == tmp_path / "data"
    assert "must not be empty" in refuse(t.FilePath, " ")
    assert "NUL" in refuse(t.FilePath, "a\0b")
    assert "no home directory" in refuse(t.FilePath, "~no-such-user-here/x")


def test_routes_are_plain_paths() -> None:
    assert accept(t.Route, "/v1/load_lora_adapter") == "/v1/load_lora_adapter"
    for value in ["v1", "", "/a?b", "/a*", "/a//b", "/ä", "/a b"]:
        assert "plain path" in refuse(t.Route, value)


def test_flags() -> None:
    assert accept(t.Flag, "gpu-memory-utilization") == "gpu-memory-utilization"
    assert "leave out the leading dashes" in refuse(t.Flag, "--dtype")
    assert "from the backend's url" in refuse(t.Flag, "port")
    assert "from the backend's api_key" in refuse(t.Flag, "api_key")
    assert "not a flag's name" in refuse(t.Flag, "a b")


def test_flag_values_are_plain_data() -> None:
    assert accept(t.FlagValue, {"a": [1, None, True, "x", 0.5]}) == {"a": (1, None, True, "x", 0.5)}
    assert "must be text" in refuse(t.FlagValue, object())


def test_environment_values_may_be_numbers_but_not_booleans() -> None:
    assert accept(t.VariableValue, 0) == "0"
    refuse(t.VariableValue, True)
    refuse(t.VariableValue, "a\0")
    assert "not the name" in refuse(t.Variable, "A=B")


def test_commands_are_shell_words() -> None:
    assert accept(t.Command, "python -m 'a b'") == "python -m 'a b'"
    assert "quotes closed" in refuse(t.Command, "python 'a")
    assert "must not be empty" in refuse(t.Command, " ")
    assert "must not be empty" in refuse(t.Text, "")
