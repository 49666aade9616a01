"""Attempts to reach what must not be reached: control routes in every spelling, other ports, other hosts. As raw requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

#: vLLM's control routes (wherever a flag puts them) and Ollama's model management
CONTROL = """
    /v1/load_lora_adapter /v1/unload_lora_adapter /sleep /wake_up /is_sleeping /release_kv_cache_memory /server_info
    /reset_prefix_cache /reset_mm_cache /reset_encoder_cache /collective_rpc /pause /resume /is_paused /abort_requests
    /update_weights /init_weight_transfer_engine /start_profile /stop_profile /fault_tolerance/x /scale_elastic_ep
    /is_scaling_elastic_ep /inference/v1/generate /inference/v1/abort_requests /invocations /docs /openapi.json
    /api/pull /api/push /api/create /api/copy /api/delete /api/blobs/sha256:0
""".split()


def _first_letter(path: str, prefix: str) -> str:
    return f"{path[0]}%{prefix}{ord(path[1]):02x}{path[2:]}"


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda p: p,
    "upper case": str.upper,
    "slash at the end": lambda p: p + "/",
    "two slashes": lambda p: "/" + p,
    "three slashes": lambda p: "//" + p,
    "dot segment": lambda p: "/." + p,
    "out of an allowed path": lambda p: "/v1/chat/.." + p,
    "out of a model's name": lambda p: "/v1/models/x/../../.." + p,
    "out of a response's id": lambda p: "/v1/responses/.." + p,
    "encoded dots": lambda p: "/v1/%2e%2e" + p,
    "encoded dots, upper case": lambda p: "/v1/%2E%2E%2F" + p[1:],
    "half-encoded dots": lambda p: "/v1/.%2e" + p,
    "encoded twice": lambda p: "/v1/%252e%252e" + p,
    "encoded slash": lambda p: p.replace("/", "%2f", 1),
    "encoded letter": lambda p: _first_letter(p, ""),
    "letter encoded twice": lambda p: _first_letter(p, "25"),
    "overlong UTF-8": lambda p: "/v1/%c0%ae%c0%ae" + p,
    "full-width slash": lambda p: "%ef%bc%8f" + p[1:],
    "backslash": lambda p: p.replace("/", "\\"),
    "backslash out": lambda p: "/v1\\..\\.." + p,
    "encoded backslash": lambda p: "/v1/%5c..%5c.." + p,
    "semicolon": lambda p: p + ";/v1/models",
    "parameter before": lambda p: "/v1;x=/.." + p,
    "query that looks allowed": lambda p: p + "?/v1/chat/completions",
    "fragment": lambda p: p + "#/v1/chat/completions",
    "encoded question mark": lambda p: p + "%3f/v1/models",
    "encoded fragment": lambda p: "/v1/models%23" + p,
    "encoded NUL": lambda p: p + "%00",
    "encoded line break": lambda p: p + "%0d%0aX: y",
    "encoded space": lambda p: "/%20" + p[1:],
    "tab": lambda p: p + "%09",
    "no slash": lambda p: p[1:],
    "absolute form": lambda p: "http://127.0.0.1{own}" + p,
    "absolute form, backend": lambda p: "http://127.0.0.1{backend}" + p,
    "absolute form, other port": lambda p: "http://127.0.0.1{foreign}" + p,
    "absolute form, https": lambda p: "https://127.0.0.1{backend}" + p,
    "absolute form, user": lambda p: "http://v1@127.0.0.1{backend}" + p,
    "through the backend's port": lambda p: "/proxy/{backend_port}" + p,
    "through its port, two slashes": lambda p: "/proxy/{backend_port}/" + p,
    "through its port, out": lambda p: "/proxy/{backend_port}/v1/.." + p,
    "through its port, encoded": lambda p: "/proxy/{backend_port}" + _first_letter(p, ""),
    "through its port, upper case": lambda p: "/proxy/{backend_port}" + p.upper(),
    "through another port": lambda p: "/proxy/{foreign_port}" + p,
    "through its port, dots before": lambda p: "/v1/../proxy/{backend_port}" + p,
}

#: paths that are served, at ports and hosts that are not ours to offer
ELSEWHERE = [
    "/proxy/{foreign_port}/v1/chat/completions",
    "/proxy/{foreign_port}/v1/models",
    "/proxy/0{foreign_port}/v1/models",
    "/proxy/{foreign_port}%2fv1/models",
    "/proxy/%20{foreign_port}/v1/models",
    "/proxy/+{foreign_port}/v1/models",
    "/proxy/{foreign_port}.0/v1/models",
    "/proxy/127.0.0.1:{foreign_port}/v1/models",
    "/proxy/@127.0.0.1:{foreign_port}/v1/models",
    "/proxy/{backend_port}@127.0.0.1:{foreign_port}/v1/models",
    "/proxy/{backend_port}:{foreign_port}/v1/models",
    "/proxy/{backend_port}%00{foreign_port}/v1/models",
    "/proxy/{backend_port}/../{foreign_port}/v1/models",
    "/proxy/{backend_port}/%2e%2e/{foreign_port}/v1/models",
    "/proxy/http://127.0.0.1:{foreign_port}/v1/models",
    "/proxy/127.0.0.1/v1/models",
    "/proxy/localhost/v1/models",
    "/proxy/22/v1/models",
    "/proxy/0/v1/models",
    "/proxy/-1/v1/models",
    "/proxy/65536/v1/models",
    "/proxy/99999999999/v1/models",
    "/proxy/0x50/v1/models",
    "/proxy/8e3/v1/models",
    "/proxy/%EF%BC%98%EF%BC%90/v1/models",
    "/proxy//v1/models",
    "/proxy/",
    "/proxy",
    "/proxy/{backend_port}",
    "/proxy/proxy/{backend_port}/v1/models",
    "/proxy/{backend_port}/proxy/{foreign_port}/v1/models",
    "/PROXY/{backend_port}/v1/models",
    "/proxy/{gateway_port}/v1/models",
    "/proxy/{gateway_port}/proxy/{foreign_port}/v1/models",
    "//127.0.0.1{foreign}/v1/models",
    "http:///v1/models",
    "*",
    "127.0.0.1{foreign}",
]

#: Host and routing headers that other servers have believed
HEADERS = [
    "Host: 127.0.0.1{foreign}",
    "Host: 127.0.0.1{foreign}\r\nHost: x",
    "Host: x\r\nX-Forwarded-Host: 127.0.0.1{foreign}",
    "Host: x\r\nX-Original-URL: /v1/models",
    "Host: x\r\nX-Rewrite-URL: /v1/chat/completions",
    "Host: x\r\nX-HTTP-Method-Override: GET",
    "Host: x\r\nX-Forwarded-Prefix: /v1",
    "Host: x\r\nForwarded: host=127.0.0.1{foreign}",
    "Host: @127.0.0.1{foreign}",
    "Host: 127.0.0.1{backend}",
]


def attempts(gateway_port: int, backend_port: int, foreign_port: int) -> Iterator[tuple[str, bytes]]:
    """(what it is, the whole request) of every attempt."""
    names = {
        "gateway_port": gateway_port,
        "backend_port": backend_port,
        "foreign_port": foreign_port,
        "own": f":{gateway_port}",
        "backend": f":{backend_port}",
        "foreign": f":{foreign_port}",
    }

    def request(method: str, target: str, headers: str = "Host: gateway") -> bytes:
        for name, value in names.items():
            target, headers = target.replace(f"{{{name}}}", str(value)), headers.replace(f"{{{name}}}", str(value))
        head = f"{method} {target} HTTP/1.1\r\n{headers}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        return f"{head}content-length: 2\r\n\r\n{{}}".encode("latin-1")

    for path in CONTROL:
        for spelling, spell in SPELLINGS.items():
            yield f"{spelling}: {path}", request("POST", spell(path))
    for path in ("/sleep", "/is_sleeping", "/server_info", "/v1/load_lora_adapter"):
        for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "post", "CONNECT"):
            yield f"{method} {path}", request(method, path)
        for header in HEADERS:
            yield f"{header!r}: {path}", request("POST", path, header)
    for target in ELSEWHERE:
        for method in ("GET", "POST"):
            yield f"{method} {target}", request(method, target)
    yield "CONNECT", request("CONNECT", "127.0.0.1{foreign}")
