"""Loading: which file, what counts, errors with file and line, and never anything but a Config or a ConfigError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from llmtap.core.config import Config
from llmtap.core.config_load import load, resolve_path
from llmtap.core.config_problems import all_keys
from llmtap.core.config_support import NOT_YET
from llmtap.core.errors import ConfigError

BACKEND = "backends:\n  - name: a\n    url: http://127.0.0.1:8081\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("f.yaml")


def fails(path: Path | None, env: dict[str, str] | None = None, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, env or {}, overrides or {})
    lines = str(caught.value).splitlines()
    assert lines == [str(problem) for problem in caught.value.problems]
    return lines


# ---- which file


def test_the_file_that_is_named_comes_first(tmp_path: Path) -> None:
    env = {"LLMTAP_CONFIG": "from-env.yaml"}
    assert resolve_path(Path("named.yaml"), env, tmp_path) == Path("named.yaml")
    assert resolve_path(None, env, tmp_path) == Path("from-env.yaml")


def test_then_the_one_in_the_folder_if_it_is_there(tmp_path: Path) -> None:
    assert resolve_path(None, {}, tmp_path) is None
    assert resolve_path(None, {"LLMTAP_CONFIG": ""}, tmp_path) is None
    (tmp_path / "llmtap.yaml").touch()
    assert resolve_path(None, {}, tmp_path) == tmp_path / "llmtap.yaml"


def test_a_dangling_link_is_there_and_fails(tmp_path: Path) -> None:
    (tmp_path / "llmtap.yaml").symlink_to("nowhere")
    path = resolve_path(None, {}, tmp_path)
    assert fails(path) == [f"{path}: there is no such file; create it, or name another with --config"]


# ---- what counts


def test_defaults(file: Path) -> None:
    assert load(None, {}, {}) == Config()
    for text in ("", "# nothing\n", "---\n", "{}", "server:\nbackends:\n"):
        file.write_text(text)
        assert load(file, {}, {}) == Config()


def test_precedence(file: Path) -> None:
    file.write_text("server: {port: 1, host: 0.0.0.0, max_body_mb: 5}\n")
    env = {"LLMTAP_SERVER__PORT": "2", "LLMTAP_SERVER__HOST": "::1"}
    server = load(file, env, {"server.port": 3}).server
    assert (server.port, server.host, server.max_body_mb, server.drain_timeout_s) == (3, "::1", 5, 30)
    assert load(file, env, {"server.port": None}).server.port == 2
    assert load(file, {}, {"server": {"port": 3}}).server.max_body_mb == 5


def test_a_list_replaces_a_list(file: Path) -> None:
    file.write_text(BACKEND)
    config = load(file, {"LLMTAP_BACKENDS": '[{"name": "e", "url": "http://e:1"}]'}, {})
    assert [b.name for b in config.backends] == ["e"]
    config = load(file, {}, {"backends": ({"name": "o", "url": "http://o:1", "api_key": SecretStr("k")},)})
    assert [b.name for b in config.backends] == ["o"]
    assert config.backends[0].api_key == SecretStr("k")


def test_one_key_of_one_backend(file: Path) -> None:
    file.write_text(BACKEND)
    env = {
        "LLMTAP_BACKENDS__0__API_KEY": "12345",
        "LLMTAP_BACKENDS__1__NAME": "b",
        "LLMTAP_BACKENDS__1__LAUNCH__MODEL": "m",
        "LLMTAP_BACKENDS__1__LAUNCH__ARGS__SEED": "5",
    }
    a, b = load(file, env, {}).backends
    assert a.url == "http://127.0.0.1:8081" and a.api_key == SecretStr("12345")
    assert b.launch is not None and (b.launch.model, b.launch.args) == ("m", {"SEED": 5})
    assert (
        load(None, env | {"LLMTAP_BACKENDS__0__NAME": "a", "LLMTAP_BACKENDS__0__URL": "http://h"}, {}).backends[0].url
        == "http://h"
    )


def test_an_index_beyond_the_next_is_a_mistake() -> None:
    (line,) = fails(None, {"LLMTAP_BACKENDS__2__NAME": "x"})
    assert line.startswith("LLMTAP_BACKENDS__2__NAME: backends[2].name: there is no backends[2]; the next one is number 0")


def test_a_mistake_in_the_file_is_not_hidden_by_what_sets_a_key_in_it(file: Path) -> None:
    file.write_text("server: 5\n")
    assert fails(file, {"LLMTAP_SERVER__PORT": "1"}) == ["f.yaml:1: server: must be a mapping, lines of `key: value`, not 5"]


def test_environment_values_are_coerced(file: Path) -> None:
    env = {
        "LLMTAP_SERVER__PORT": "9000",
        "LLMTAP_SERVER__WEB": "true",
        "LLMTAP_CAPTURE__SEGMENT_MB": "0.5",
        "LLMTAP_STORE__PATH": "null",
        "LLMTAP_ROUTING__ALLOW_PATHS": "[/x]",
        "LLMTAP_LOGGING__JSON": "false",
        "LLMTAP_CONFIG": "elsewhere.yaml",
    }
    config = load(None, env, {})
    assert (config.server.port, config.server.web, config.capture.segment_mb) == (9000, True, 0.5)
    assert (config.store.path, config.routing.allow_paths, config.logging.json_format) == (None, ("/x",), False)


def test_values_from_variables_are_coerced_and_checked(file: Path) -> None:
    file.write_text("server:\n  port: ${env.PORT}\nbackends:\n  - {name: a, url: 'http://${env.H}:1', api_key: os.environ/K}\n")
    config = load(file, {"PORT": "9000", "H": "gpu", "K": "sk-1"}, {})
    assert config.server.port == 9000
    assert config.backends[0].url == "http://gpu:1"
    assert config.backends[0].api_key == SecretStr("sk-1")
    assert fails(file, {"PORT": "sk-hidden", "H": "gpu", "K": "k"}) == ["f.yaml:2: server.port: must be a whole number"]


def test_overrides_of_unknown_keys_fail() -> None:
    assert fails(None, {}, {"server.prot": 1}) == ['command line: server.prot: no such key; did you mean "port"?']


# ---- errors


def test_every_problem_has_its_line_and_all_are_told(file: Path) -> None:
    file.write_text(
        "server:\n"
        "  prot: 9000\n"
        "backends:\n"
        "  - name: a\n"
        "    url: http://h:1/v1\n"
        "    api_key: ${env.NOPE}\n"
        "  - {name: a, launch: {engine: sim,\n"
        "      modle: x}}\n"
        "routing:\n"
        "  allow_paths:\n"
        "    - /ok\n"
        "    - wrong\n"
    )
    assert fails(file, {"LLMTAP_SERVER__WEB": "sk-hidden", "LLMTAP_QUEUE__MAX": "1"}) == [
        "LLMTAP_QUEUE__MAX: no such setting; did you mean LLMTAP_QUEUE__MAX_WAITING?",
        "LLMTAP_SERVER__WEB: server.web: must be true or false",
        'f.yaml:2: server.prot: no such key; did you mean "port"?',
        "f.yaml:5: backends[0].url: must be the server's base URL; leave out /v1",
        "f.yaml:6: backends[0].api_key: the environment variable NOPE is not set; set it or write the value",
        "f.yaml:7: backends[1].launch.model: is missing; add it",
        'f.yaml:8: backends[1].launch.modle: no such key; did you mean "model"?',
        "f.yaml:12: routing.allow_paths[1]: must be a plain path beginning with /, like /v1/load_lora_adapter "
        "(no query, no wildcard)",
    ]


def test_checks_over_several_keys_point_at_the_one_to_mend(file: Path) -> None:
    file.write_text("backends:\n  - {name: a, url: 'http://h:1'}\n  - url: http://h:2\n    name: a\ndatasette:\n  port: 8000\n")
    assert fails(file) == ["f.yaml:4: backends[1].name: is the name of another one already; choose a unique name"]
    file.write_text("datasette:\n  port: 8000\n")
    assert fails(file) == ["f.yaml:2: datasette.port: is the gateway's own port; choose another"]
    file.write_text("routing:\n  direct_ports: [5000, 8000]\n")
    assert fails(file) == ["f.yaml:2: routing.direct_ports[1]: is the gateway's own port; remove it"]
    file.write_text("routing:\n  fallbacks:\n    m: [n, m]\n")
    assert fails(file) == ["f.yaml:3: routing.fallbacks.m: names the model itself; remove it there"]


def test_not_available_yet(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("auth.keys.*.budget_usd", "batching"):  # as if they were not built
        monkeypatch.setitem(NOT_YET, key, ())
    file.write_text("auth:\n  keys: [{name: a, key: sk-12345678901234567890, budget_usd: 3}]\nbatching: {enabled: true}\n")
    lines = fails(file, {"LLMTAP_BATCHING__MAX_WAIT_MS": "3"})
    assert [line.partition(": not available yet")[0] for line in lines] == [
        "f.yaml:2: auth.keys[0].budget_usd",
        "f.yaml:3: batching.enabled",
        "LLMTAP_BATCHING__MAX_WAIT_MS: batching.max_wait_ms",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a: \xff\n", "f.yaml:1: is not UTF-8 text; save it as UTF-8"),
        (b"a: 1\nb: caf\xe9\n", "f.yaml:2: is not UTF-8 text; save it as UTF-8"),
        (b"- a\n", "f.yaml:1: must be a mapping with sections, like `server:`; see docs/configuration.md"),
        (b"text\n", "f.yaml:1: must be a mapping with sections, like `server:`; see docs/configuration.md"),
        (b"server: {}\nserver: {}\n", "f.yaml:2: server: is given twice (first in line 1); remove one"),
        (b"server: [\n", "f.yaml:2: not valid YAML: expected the node content, but found '<stream end>'"),
        (b"x" * 4_000_001, "f.yaml: is too large for a configuration; name another file"),
    ],
)
def test_what_is_no_configuration(file: Path, text: bytes, line: str) -> None:
    file.write_bytes(text)
    assert fails(file) == [line]


def test_a_byte_order_mark_is_fine(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfserver: {port: 5}\n")
    assert load(file, {}, {}).server.port == 5


def test_files_that_cannot_be_read(file: Path, tmp_path: Path) -> None:
    assert fails(file) == ["f.yaml: there is no such file; create it, or name another with --config"]
    assert fails(tmp_path) == [f"{tmp_path}: is a folder; name the file in it"]
    assert fails(Path("a\0b")) == ["a\\x00b: cannot be read: not a valid path"]
    assert fails(Path("x" * 300))[0].endswith(": cannot be read: File name too long")
    assert "cannot be read" in fails(Path("~no-such-user-here/x.yaml"))[0]
    assert "cannot be read" in fails(file.absolute() / "x" if file.write_text("") == 0 else file)[0]


def test_a_file_without_permission(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # raised by hand: root, who may run this, can read everything
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert fails(file) == ["f.yaml: may not be read; change its permissions"]


SECRET = "hunter2-7f3a"


@pytest.mark.parametrize(
    "text",
    [
        f"backends:\n  - {{name: a, url: 'http://u:{SECRET}@h'}}\n",
        f"backends:\n  - {{name: a, url: 'http://h/?key={SECRET}'}}\n",
        f"backends:\n  - {{name: a, url: 'http://h', api_key: [{SECRET}]}}\n",
        f"backends:\n  - {{name: a, url: 'http://h', api_key: 'a {SECRET}'}}\n",
        f"backends:\n  - {{name: a, url: 'http://h', api_key: *{SECRET}}}\n",
        f"backends:\n  - {{name: a, url: 'http://h', api_key: !{SECRET} x}}\n",
        "backends:\n  - {name: a, url: 'http://h', max_concurrency: '${env.SECRET}'}\n",
        f"backends:\n  - {{name: a, launch: {{model: m, env: [{SECRET}]}}}}\n",
        f"backends:\n  - {{name: a, launch: {{model: m, args: {SECRET}}}}}\n",
        f"backends:\n  - {{name: a, launch: {{model: m, command: '{SECRET} \"'}}}}\n",
        f"auth: {{keys: [{{name: k, key_sha256: {SECRET}}}]}}\n",
        f"rate_limit: {{storage: 'postgres://u:{SECRET}@h'}}\n",
        f"rate_limit: {{window_seconds: 0, storage: 'redis://u:{SECRET}@h'}}\n",
        "server: {port: '${env.SECRET}'}\n",
        "routing: {policy: '${env.SECRET}'}\n",
    ],
)
def test_no_secret_is_in_a_message(file: Path, text: str) -> None:
    file.write_text(text)
    assert SECRET not in "\n".join(fails(file, {"SECRET": SECRET}))
    assert SECRET not in "\n".join(fails(None, {"LLMTAP_SERVER__PORT": SECRET, "LLMTAP_BACKENDS__0__API_KEY": f"{SECRET} x"}))


# ---- any document

KEYS = sorted({key.rpartition(".")[2].removesuffix("[]") for key in all_keys(Config)})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["${env.A}", "http://h:1", "*"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def either(path: Path | None, env: dict[str, str], overrides: dict[str, Any]) -> None:
    try:
        assert isinstance(load(path, env, overrides), Config)
    except ConfigError as error:
        assert error.problems
        assert all(line.isprintable() for line in str(error).split("\n"))


@given(st.dictionaries(st.sampled_from(list(Config.model_fields)) | st.text(max_size=5), TREES, max_size=4))
@example({"backends": [{"name": "a", "url": "http://h", "launch": {"model": "m", "args": {"a": [{"b": [1]}]}}}]})
@example({"a.b": 1, "": 2, "server": {"": 1}})
def test_any_overrides_give_a_config_or_a_config_error(tree: dict[str, Any]) -> None:
    either(None, {"A": "1"}, tree)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


VALUES = [" 1", " x", " true", " [", " {}", " []", " &a", " *a", " ${env.A}", " |", " 'x", " http://h:1", " # c", " !t x", ""]
LINES = st.lists(
    st.tuples(st.sampled_from(["", "  ", "    ", "  - ", "- ", "\t"]), st.sampled_from(KEYS), st.sampled_from(VALUES)),
    max_size=8,
).map(lambda lines: "\n".join(f"{indent}{key}:{value}" for indent, key, value in lines))


@given(LINES | st.text(max_size=80))
def test_any_document_gives_a_config_or_a_config_error(folder: Path, text: str) -> None:
    path = folder / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    either(path, {"A": "1"}, {})


@given(st.binary(max_size=60))
def test_any_bytes_give_a_config_or_a_config_error(folder: Path, data: bytes) -> None:
    path = folder / "bytes.yaml"
    path.write_bytes(data)
    either(path, {}, {})


@given(
    st.dictionaries(
        st.builds(
            "LLMTAP_{}".format,
            st.sampled_from([k.replace("[]", "__0").replace(".", "__").upper() for k in all_keys(Config)]) | st.text(max_size=9),
        ),
        st.text(max_size=12) | st.sampled_from(["1", "[1]", "{a: 1}", "null", "[", "http://h"]),
        max_size=4,
    )
)
def test_any_environment_gives_a_config_or_a_config_error(env: dict[str, str]) -> None:
    either(None, env, {})
