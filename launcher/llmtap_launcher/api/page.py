"""The page at `/api/docs`: the API's own OpenAPI description as HTML, complete in itself (no scripts, nothing loaded)."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}section{border-top:1px solid #8886;padding:1rem 0}code,pre{font:13px/1.5 ui-monospace,monospace}
pre{overflow-x:auto;background:#8881;padding:.6rem}h2{font-size:1rem;margin:0 0 .3rem}b.m{display:inline-block;min-width:4.5rem}
table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}summary{cursor:pointer}
"""
_METHODS = ("get", "post", "put", "patch", "delete")


def page(openapi: dict[str, Any]) -> str:
    """The whole page."""
    schemas = openapi.get("components", {}).get("schemas", {})
    parts = [
        _operation(path, method, operation, schemas)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
        if method in _METHODS
    ]
    info = openapi["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style><h1>{escape(info['title'])}</h1>"
        f"<p>{escape(info.get('summary', ''))} Version {escape(info['version'])}. "
        f'As OpenAPI: <a href="/api/openapi.json">/api/openapi.json</a></p>{"".join(parts)}</html>'
    )


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    out = [
        f'<section id="{escape(operation["operationId"])}"><h2><b class="m">{method.upper()}</b> <code>{escape(path)}</code></h2>'
    ]
    out.append(f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>")
    members = [
        (p["name"], p["schema"], p.get("description", ""), p.get("required", False)) for p in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        members += _members(_resolved(body, schemas))
    if members:
        out.append("<table>" + "".join(_member(*member, schemas) for member in members) + "</table>")
    out.append(f"<pre>{escape(_curl(path, method, body, schemas))}</pre>")
    for status, answer in operation.get("responses", {}).items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        answered = _members(_resolved(schema, schemas))
        rows = "".join(_member(*member, schemas) for member in answered)
        out.append(
            f"<details><summary>{escape(status)} {escape(answer.get('description', ''))}</summary><table>{rows}</table></details>"
        )
    return "".join(out) + "</section>"


def _members(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any], str, bool]]:
    required = schema.get("required", [])
    return [(name, part, part.get("description", ""), name in required) for name, part in schema.get("properties", {}).items()]


def _member(name: str, schema: dict[str, Any], about: str, required: bool, schemas: dict[str, Any]) -> str:
    kind = type_of(schema, schemas) + ("" if required else ", optional")
    return f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{escape(about)}</tr>"


def type_of(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A schema in a word or two."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(type_of(part, schemas) for part in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return "list of " + type_of(schema.get("items", {}), schemas)
    return str(schema.get("const") or schema.get("type") or "any")


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found = schemas.get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    assert isinstance(found, dict)
    return found


def _curl(path: str, method: str, body: dict[str, Any] | None, schemas: dict[str, Any]) -> str:
    line = "curl" if method == "get" else f"curl -X {method.upper()}"
    line += f" http://127.0.0.1:8000{path}"
    if body is None:
        return line
    example = {name: name.upper() for name in _resolved(body, schemas).get("required", [])}
    return f"{line} -H 'content-type: application/json' -d '{json.dumps(example)}'"
