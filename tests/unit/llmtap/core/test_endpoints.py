"""The route table is an allowlist: no spelling of a control route gets through it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.endpoints import ENDPOINTS, TELLING, canonical_path, direct, endpoint_of, is_control

CONTROL = """
    /sleep /wake_up /is_sleeping /pause /resume /update_weights /v1/load_lora_adapter /v1/unload_lora_adapter /collective_rpc
    /server_info /reset_prefix_cache /start_profile /stop_profile /abort_requests /invocations /inference/v1/generate /docs
    /openapi.json /scale_elastic_ep /fault_tolerance/x /api/pull /api/push /api/create /api/copy /api/delete /api/blobs/sha256:0
""".split()


@pytest.mark.parametrize("path", CONTROL)
@pytest.mark.parametrize(
    "spell",
    [
        lambda p: p,
        lambda p: p.upper(),
        lambda p: "/" + p,
        lambda p: p + "/",
        lambda p: "/v1/.." + p,
        lambda p: "/v1/%2e%2e" + p,
        lambda p: "/v1/%2E%2E%2f" + p[1:],
        lambda p: p.replace("/", "%2f", 1),
        lambda p: p[0] + f"%{ord(p[1]):02x}" + p[2:],
        lambda p: p[0] + f"%25{ord(p[1]):02x}" + p[2:],
        lambda p: p + "?x=/v1/models",
        lambda p: p + "#/v1/models",
        lambda p: p + ";/v1/models",
        lambda p: p.replace("/", "\\"),
        lambda p: "/v1/models/.." + p,
        lambda p: "/v1/models/%2e%2e" + p,
        lambda p: "/v1/responses/.." + p,
        lambda p: "http://127.0.0.1" + p,
        lambda p: p + "%00",
        lambda p: p + "%0d%0aX: y",
    ],
)
def test_no_spelling_of_a_control_route_is_an_endpoint(path: str, spell) -> None:  # type: ignore[no-untyped-def]
    canonical = canonical_path(spell(path))
    assert canonical is None or endpoint_of(canonical) is None


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_every_route_of_the_table_is_reachable_with_a_query(path: str) -> None:
    assert canonical_path(path + "?a=b//..") == path
    assert endpoint_of(path) is ENDPOINTS[path]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/responses/resp_1", "responses_by_id"),
        ("/v1/responses/resp_1/cancel", "responses_by_id"),
        ("/v1/models/Qwen/Qwen2.5-1.5B", "models"),
    ],
)
def test_routes_with_names_in_them(path: str, name: str) -> None:
    found = endpoint_of(path)
    assert found is not None and found.name == name


def test_percent_encoding_is_undone_once() -> None:
    assert canonical_path("/v1/%63ompletions") == "/v1/completions"
    assert canonical_path("/v1/%2563ompletions") is None


@given(st.text(max_size=60))
def test_a_canonical_path_is_its_own_canonical_path(text: str) -> None:
    path = canonical_path("/" + text)
    if path is not None:
        assert canonical_path(path) == path


@pytest.mark.parametrize(
    "path", [*CONTROL, "/init_weight_transfer_engine", "/fault_tolerance/a/b", "/api/pull", "/api/blobs/sha256:1"]
)
@pytest.mark.parametrize("spell", [str, str.upper, lambda p: p + "/", lambda p: p + "///"])
def test_control_routes_are_known_in_any_case(path: str, spell) -> None:  # type: ignore[no-untyped-def]
    assert is_control(spell(path))


def test_what_is_served_is_not_control() -> None:
    assert not any(is_control(path) for path in [*ENDPOINTS, *TELLING, "/", "/completion", "/v1/responses/sleep", "/sleeping"])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/proxy/8081/v1/models", (8081, "/v1/models")),
        ("/proxy/1/", (1, "/")),
        ("/proxy/65535/a/b", (65535, "/a/b")),
        ("/proxy/65536/a", None),
        ("/proxy/0/a", None),
        ("/proxy/080/a", None),
        ("/proxy/8081", None),
        ("/proxy/+80/a", None),
        ("/proxy/\u0661\u0662/a", None),
        ("/proxy/127.0.0.1:80/a", None),
        ("/proxy/1.1/a", None),
        ("/Proxy/80/a", None),
        ("/v1/proxy/80/a", None),
    ],
)
def test_direct_ports(path: str, found: tuple[int, str] | None) -> None:
    assert direct(path) == found


def test_ollamas_routes_are_for_ollama_only() -> None:
    kinds = {path: endpoint.kind for path, endpoint in ENDPOINTS.items() if path.startswith("/api/")}
    assert set(kinds.values()) == {"ollama"} and len(kinds) == 8
    assert ENDPOINTS["/v1/chat/completions"].kind == "any" and ENDPOINTS["/tokenize"].kind == "openai"
