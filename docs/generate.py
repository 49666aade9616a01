"""Writes the generated parts of the documentation from the code, and with `--check` says which of them are out of date.

    python docs/generate.py            rewrite
    python docs/generate.py --check    exit status 1 when something would change

A part of a page stands between `<!-- generated: NAME -->` and `<!-- end -->`; `PARTS` says who writes it.
Files that are generated as a whole are in `FILES`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent / "addons"), str(DOCS.parent / "launcher"), str(DOCS)]

import metric_tables  # noqa: E402
import protocol_table  # noqa: E402
from dashboard import dashboard  # noqa: E402

from llmtap.core.config import Config  # noqa: E402
from llmtap.core.config_dump import show_path  # noqa: E402
from llmtap.core.config_problems import bare  # noqa: E402
from llmtap.core.config_support import Except, entry_for  # noqa: E402
from llmtap.core.config_types import Section  # noqa: E402

NOT_AVAILABLE = "(not available yet)"
#: values in the example for keys that have no default, or whose default would show nothing
EXAMPLES: dict[str, Any] = {
    "backends.*.name": "a",
    "backends.*.url": "http://127.0.0.1:8081",
    "backends.*.launch.model": "Qwen/Qwen2.5-1.5B-Instruct",
    "backends.*.launch.args": {"dtype": "auto", "gpu-memory-utilization": 0.7},
    "backends.*.launch.env": {"CUDA_VISIBLE_DEVICES": "0"},
    "auth.keys.*.name": "production",
    "auth.keys.*.key_sha256": "0" * 64,
    "rate_limit.models.*.model": "Qwen/Qwen2.5-72B-Instruct",
    "rate_limit.models.*.rate_limit": 10,
    "filters.*.max_tokens": 2048,
    "prices.*.model": "Qwen/*",
    "prices.*.input_usd_per_million": 0.1,
    "prices.*.output_usd_per_million": 0.4,
}
#: a further sentence in the example
HINTS = {"backends.*.api_key": "From the environment: ${env.VLLM_API_KEY}"}


# ---- what a key is


def section_in(annotation: Any) -> type[Section] | None:
    """The section an annotation is, or is a list of."""
    kind = bare(annotation)
    if get_origin(kind) is tuple:
        kind = bare(get_args(kind)[0])
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def default_of(field: Any) -> Any:
    """A field's default as YAML has it; PydanticUndefined for a required one."""
    value = field.default
    if isinstance(value, Path):
        return show_path(value)
    return list(value) if isinstance(value, tuple) else value


def yaml_value(value: Any) -> str:
    """A value in YAML's flow style, which is JSON where quotes are needed."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {yaml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z./_][A-Za-z0-9./_-]*(:[A-Za-z0-9./_-]+)*|(\d+\.){3}\d+", value)
        plain = None if value in ("true", "false", "null") else plain
        return value if plain else json.dumps(value)
    return str(value)


def availability(key: str, annotation: Any = None) -> str:
    """The mark of a key that is not, or not wholly, available; empty for others. `annotation` tells the choices it has."""
    works = entry_for(key)
    if works is None:
        return ""
    if isinstance(works, Except):
        return f"({works.what}: not available yet)"
    if get_origin(bare(annotation)) is not Literal:
        return NOT_AVAILABLE
    others = get_args(bare(annotation))[1:]  # the first is the default
    return f"({', '.join(other for other in others if other not in works)}: not available yet)"


def type_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(type_words(part, definitions) for part in schema["anyOf"])
    if "$ref" in schema:
        return "mapping, see below"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        inner = type_words(schema["items"], definitions)
        return "list, see below" if "see below" in inner else f"list of {inner}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of {type_words(values, definitions)}" if isinstance(values, dict) else "mapping"
    if kind in ("integer", "number"):
        word = "whole number" if kind == "integer" else "number"
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum")
        if high is not None and high < 100_000:
            return f"{word}, {low} to {high}" if "minimum" in schema else f"{word} up to {high}"
        return word if low is None else f"{word}, {'at least' if 'minimum' in schema else 'above'} {low}"
    if isinstance(kind, list):
        return "any value" if len(kind) > 2 else " or ".join({"string": "text", "number": "number"}[k] for k in kind)
    if kind == "string":
        return {"password": "text (secret)", "path": "path", "date": "date"}.get(schema.get("format", ""), "text")
    return {"boolean": "`true`, `false`", "null": "null"}[str(kind)]


# ---- configuration: reference


def reference() -> str:
    """The tables of all sections."""
    schema = Config.model_json_schema(by_alias=True)
    out: list[str] = []
    for name, field in Config.model_fields.items():
        section = section_in(field.annotation)
        assert section is not None
        out += _section_reference(name, section, schema, many=get_origin(bare(field.annotation)) is tuple)
    return "\n".join(out)


def _section_reference(path: str, section: type[Section], schema: dict[str, Any], *, many: bool) -> list[str]:
    definitions = schema["$defs"]
    properties = definitions[section.__name__]["properties"]
    pattern = f"{path}.*" if many else path
    whole = entry_for(path) == ()
    title = f"### `{path}`" + (f" {NOT_AVAILABLE}" if whole else "")
    doc = (section.__doc__ or "").strip().partition("\n\n")[0]
    out = [title, "", doc + (" A list; every item has:" if many else ""), "", "| key | value | default | |", "|---|---|---|---|"]
    nested: list[str] = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        default = default_of(field)
        shown = "required" if default is PydanticUndefined else f"`{yaml_value(default)}`"
        mark = "" if whole else availability(f"{pattern}.{key}", field.annotation)
        words = type_words(properties[key], definitions)
        cells = [f"`{key}`", words, shown, (field.description or "") + (f" *{mark}*" if mark else "")]
        out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        inner = section_in(field.annotation)
        if inner is not None:
            is_list = get_origin(bare(field.annotation)) is tuple
            nested += _section_reference(f"{pattern}.{key}", inner, schema, many=is_list)
    return [*out, "", *nested]


# ---- configuration: annotated example


def example() -> str:
    """A configuration with every key: its default (or an example where there is none) under a comment."""
    out = [
        "# llmtap.yaml: every key with its default. A file needs only what differs; `llmtap check` validates it.",
        "# Values may take an environment variable: ${env.NAME}. Variables LLMTAP_<SECTION>__<KEY> override the file.",
        "# yaml-language-server: $schema=llmtap.schema.json",
    ]
    for name, field in Config.model_fields.items():
        section = section_in(field.annotation)
        assert section is not None
        mark = availability(name)
        out += ["", f"# {field.description}" + (f" {mark}" if mark else "")]
        if name == "backends":
            out += ["backends:", *_items(name, section)]
        elif get_origin(bare(field.annotation)) is tuple:
            out += [f"{name}: []", *_commented(_items(name, section))]
        else:
            out += [f"{name}:", *_keys(name, section, "  ")]
    return "\n".join(out) + "\n"


def _keys(path: str, section: type[Section], indent: str) -> list[str]:
    out: list[str] = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        here = f"{path}.{key}"
        mark = "" if entry_for(path) == () else availability(here, field.annotation)
        words = [field.description or "", HINTS.get(here, ""), mark]
        out.append(f"{indent}# " + " ".join(word for word in words if word))
        value = EXAMPLES.get(here, default_of(field))
        out.append(f"{indent}{key}: {yaml_value(value)}")
        inner = section_in(field.annotation)
        if inner is not None and get_origin(bare(field.annotation)) is tuple:
            out += [indent + line for line in _commented(_items(here, inner))]
    return out


def _items(path: str, section: type[Section]) -> list[str]:
    """An item with every key; for backends also one that the launcher starts."""
    lines = _keys(f"{path}.*", section, "    ")
    first = next(n for n, line in enumerate(lines) if not line.lstrip().startswith("#"))
    lines[first] = "  - " + lines[first][4:]
    lines[:first] = [line[2:] for line in lines[:first]]  # comments above the dash stand at its column
    if path != "backends":
        return lines
    launch = section_in(section.model_fields["launch"].annotation)
    assert launch is not None
    return [
        *lines,
        "  # A server that llmtap starts itself",
        "  - name: b",
        "    launch:",
        *_keys("backends.*.launch", launch, "      "),
    ]


def _commented(lines: list[str]) -> list[str]:
    return [f"# {line}" for line in lines]


# ---- configuration: JSON schema

FROM_ENVIRONMENT = {
    "description": "A value taken from an environment variable.",
    "type": "string",
    "pattern": r"\$\{env\.[A-Za-z_][A-Za-z0-9_]*\}|^os\.environ/[A-Za-z_][A-Za-z0-9_]*$",
}


def schema() -> dict[str, Any]:
    """JSON schema of the file, for editors. Where a value may come from the environment, it says so."""
    raw = Config.model_json_schema(by_alias=True)
    definitions = {name: _section_schema(part) for name, part in raw.pop("$defs").items()}
    out = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmtap configuration",
        **_section_schema(raw),
        "$defs": {**definitions, "FromEnvironment": FROM_ENVIRONMENT},
    }
    out["title"] = "llmtap configuration"
    return out


def _section_schema(part: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _property(value) for name, value in part["properties"].items()}
    return {**{k: v for k, v in part.items() if k != "title"}, "properties": properties}


def _property(value: dict[str, Any]) -> dict[str, Any]:
    value = {k: v for k, v in value.items() if k not in ("title", "writeOnly")}
    notes: dict[str, Any] = {k: value.pop(k) for k in ("description", "default") if k in value}
    if "$ref" in value:  # a section: its defaults are in its own definition
        notes.pop("default", None)
        return {**value, **notes}
    return {**_or_variable(value), **notes}


def _or_variable(value: dict[str, Any]) -> dict[str, Any]:
    kind = value.get("type")
    if any("$ref" in part for part in value.get("anyOf", ())):
        return value
    if kind == "array":
        return {**value, "items": value["items"] if "$ref" in value["items"] else _or_variable(value["items"])}
    if kind == "object" or isinstance(kind, list) or (kind == "string" and "pattern" not in value and "enum" not in value):
        return value
    return {"anyOf": [*(_or_variable(p) if p.get("type") == "array" else p for p in value.get("anyOf", [value])), _VARIABLE]}


_VARIABLE = {"$ref": "#/$defs/FromEnvironment"}


# ---- files


def _schema_page() -> str:
    from llmtap_launcher.store.schema_doc import markdown  # needs SQLite and the migrations: not for the configuration's pages

    return markdown()


#: generated files
def _commands_page() -> str:
    """Every command with its `--help`, as the terminal shows it at 100 columns."""
    from click.testing import CliRunner

    from llmtap_launcher.cli import COMMANDS, cli

    out = ["# Commands", "", "`llmtap COMMAND --help` prints these. `python -m llmtap_launcher` is the same program.",
           "Exit status: 0 done, 1 failed (one clear line on stderr), 2 wrong usage.", ""]  # fmt: skip
    groups = [[name] for name in COMMANDS] + [["engine", "install"]]
    for words in sorted(groups):
        command: Any = cli
        for word in words:
            command = command.get_command(None, word)
            command._help_option = None  # click remembers it as of the first use, which may have been without `-h`
        done = CliRunner().invoke(cli, [*words, "--help"], prog_name="llmtap", terminal_width=100)
        out += [
            f"## llmtap {' '.join(words)}",
            "",
            "```text",
            *(line.rstrip() for line in done.output.strip().splitlines()),
            "```",
            "",
        ]
    return "\n".join(out)


FILES: dict[str, Callable[[], str]] = {
    "commands.md": _commands_page,
    "grafana/llmtap.json": lambda: json.dumps(dashboard(), indent=2) + "\n",
    "llmtap.example.yaml": example,
    "llmtap.schema.json": lambda: json.dumps(schema(), indent=2) + "\n",
    "schema.md": _schema_page,
}
#: page -> generated parts of it
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "configuration.md": {"reference": reference},
    "metrics.md": {"families": metric_tables.families, "vllm": metric_tables.vllm},
    "protocols.md": {"endpoints": protocol_table.table},
}


def filled(page: str, parts: dict[str, Callable[[], str]]) -> str:
    """The page with its generated parts renewed. Raises ValueError when a part's marks are missing."""
    for name, write in parts.items():
        found = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = write().strip("\n")
        page, n = found.subn(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", page)  # type: ignore[misc]
        if n != 1:
            raise ValueError(f"the marks of the generated part {name} occur {n} times")
    return page


def outputs() -> dict[Path, str]:
    """Every file that is generated, or has generated parts, with what it should hold."""
    out = {DOCS / name: write() for name, write in FILES.items()}
    for name, parts in PARTS.items():
        out[DOCS / name] = filled((DOCS / name).read_text(encoding="utf-8"), parts)
    return out


def main(argv: list[str]) -> int:
    """Write, or with `--check` compare. Returns the exit status."""
    stale = {path: text for path, text in outputs().items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{path.relative_to(DOCS.parent)}: {'out of date; run make docs' if '--check' in argv else 'written'}")
        if "--check" not in argv:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
