"""The Grafana dashboard for llmtap's metrics, as data: `docs/generate.py` writes it to `docs/grafana/llmtap.json`.

A panel is a title, a unit and its queries; the rest of Grafana's format is the same for all. A test runs every query against a
real Prometheus that scrapes a gateway.
"""

from __future__ import annotations

from typing import Any

_ONLY = 'model=~"$model"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: (title, unit, [(legend, query)])
Panel = tuple[str, str, list[tuple[str, str]]]


def _rate(metric: str, by: str = "", only: str = _ONLY) -> str:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate(llmtap_{metric}{{{only}}}[$__rate_interval]))"


def _quantiles(metric: str, *qs: float) -> list[tuple[str, str]]:
    return [
        (f"p{q * 100:g}", f"histogram_quantile({q}, sum by (le) (rate(llmtap_{metric}_bucket{{{_ONLY}}}[$__rate_interval])))")
        for q in qs
    ]


PANELS: list[Panel] = [
    ("Requests by outcome", "reqps", [("{{outcome}}", _rate("requests_total", "outcome"))]),
    ("Running and waiting", "short", [("running", "sum(llmtap_requests_running)"), ("waiting", "sum(llmtap_requests_waiting)")]),
    ("Running by backend", "short", [("{{model}} at {{backend}}", f"llmtap_backend_requests_running{{{_ONLY}}}")]),
    ("Tokens", "short", [("prompt/s", _rate("prompt_tokens_total")), ("generated/s", _rate("generation_tokens_total"))]),
    ("Time to first token", "s", _quantiles("time_to_first_token_seconds", 0.5, 0.95, 0.99)),
    ("Inter-token latency", "s", _quantiles("inter_token_latency_seconds", 0.5, 0.95, 0.99)),
    ("Time per output token", "s", _quantiles("time_per_output_token_seconds", 0.5, 0.95)),
    ("Whole request", "s", _quantiles("e2e_request_latency_seconds", 0.5, 0.95, 0.99)),
    ("Waiting for a place", "s", _quantiles("queue_time_seconds", 0.5, 0.95)),
    ("The gateway's own share", "s", _quantiles("overhead_seconds", 0.5, 0.99)),
    ("Generated tokens by key", "short", [("{{key}}", _rate("generation_tokens_total", "key"))]),
    ("Requests by endpoint", "reqps", [("{{endpoint}}", _rate("requests_total", "endpoint"))]),
    ("Tokens of a prompt", "short", _quantiles("request_prompt_tokens", 0.5, 0.95)),
    ("Tokens of a reply", "short", _quantiles("request_generation_tokens", 0.5, 0.95)),
    ("Refusals", "reqps", [("{{code}}", _rate("refusals_total", "code", ""))]),
    (
        "Failed attempts and retries",
        "reqps",
        [
            ("{{backend}}: {{reason}}", _rate("backend_failures_total", "backend, reason", "")),
            ("retried: {{reason}}", _rate("retries_total", "reason", "")),
        ],
    ),
    ("Backends up", "short", [("{{backend}}", "llmtap_backend_up")]),
    ("Capture: lag of the database", "s", [("lag", "llmtap_spool_lag_seconds")]),
    (
        "Capture: log and what was dropped",
        "short",
        [("bytes in the log", "llmtap_spool_bytes"), ("dropped/s", _rate("capture_dropped_total", only="") + " or vector(0)")],
    ),
    ("Errors inside the gateway", "short", [
        ("steps/s", _rate("hook_errors_total", only="") + " or vector(0)"), ("undecodable/s", _rate("tee_errors_total", only="")),
    ]),
]  # fmt: skip


def queries() -> list[str]:
    """Every query of the dashboard, with Grafana's variables in it."""
    return [query for _, _, targets in PANELS for _, query in targets]


def dashboard() -> dict[str, Any]:
    """The whole dashboard, in the form Grafana imports."""
    return {
        "title": "llmtap",
        "uid": "llmtap",
        "description": "Requests, tokens and latencies through llmtap.",
        "tags": ["llm", "llmtap"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), _model()]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}


def _model() -> dict[str, Any]:
    query = "label_values(llmtap_requests_total, model)"
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "model"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, title: str, unit: str, targets: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title,
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for n, (legend, query) in enumerate(targets)
        ],
    }
