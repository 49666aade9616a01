"""The environment's part of a configuration: `LLMTAP_<SECTION>__<KEY>` variables, and `${env.NAME}` inside values.

    LLMTAP_SERVER__PORT=9000                       a key
    LLMTAP_BACKENDS='[{"name": "a", "url": ...}]'   a whole section: YAML or JSON
    LLMTAP_BACKENDS__0__API_KEY=sk-...             deeper: list items by index, keys of a mapping as they are written

Plain keys take the text as it is (`null` is null); lists, mappings and whole sections are read as YAML, which JSON is too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from llmtap.core import config_yaml
from llmtap.core.config_problems import Origin, Path, Problem, all_keys, bare, below, dotted, keys_of
from llmtap.core.config_types import Section

PREFIX = "LLMTAP_"
#: how a value of the file names a variable; the second is LiteLLM's form, for a whole value
_EMBEDDED = re.compile(r"\$\{env\.([^{}]*)\}")
_WHOLE = re.compile(r"os\.environ/(.*)", re.DOTALL)
_SHELL = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Z_][A-Z0-9_]*)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable that sets something: where, and what."""

    variable: str
    path: Path
    value: Any


def settings(env: Mapping[str, str], root: type[Section]) -> tuple[list[Setting], list[Problem]]:
    """The settings in `env`, sections before what is in them, and what is wrong with them.

    `LLMTAP_` variables that are neither a section's name nor contain `__` (`LLMTAP_CONFIG` for one) mean nothing here.
    """
    found: list[Setting] = []
    problems: list[Problem] = []
    for variable in sorted(env, key=lambda v: (v.count("__"), v)):
        if not variable.startswith(PREFIX):
            continue
        parts = variable.removeprefix(PREFIX).split("__")
        if len(parts) == 1 and parts[0].lower() not in keys_of(root):
            continue
        path, kind = _resolve(root, parts)
        if kind is None:
            problems.append(Problem(Origin(variable), "", _unknown(variable, root)))
            continue
        value, wrong = _value(env[variable], kind)
        if wrong is not None:
            problems.append(Problem(Origin(variable), dotted(path), wrong))
        else:
            found.append(Setting(variable, path, value))
    return found, problems


def _resolve(root: type[Section], parts: list[str]) -> tuple[Path, Any]:
    """The path a variable's parts mean and what is there; kind None when there is no such key."""
    path: list[str | int] = []
    kind: Any = root
    for part in parts:
        key: str | int = part
        if isinstance(kind, type) and issubclass(kind, Section):
            key = part.lower()
        elif part.isascii() and part.isdigit() and len(part) < 5:
            key = int(part)
        kind = below(kind, key) if part else None
        if kind is None:
            break
        path.append(key)
    return tuple(path), kind


def _unknown(variable: str, root: type[Section]) -> str:
    names = sorted({key.replace("[]", "__0").replace(".", "__").upper() for key in all_keys(root)})
    word = re.sub(r"__\d+__", "__0__", variable.upper()).removeprefix(PREFIX)
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return "no such setting; " + (f"did you mean {PREFIX}{found[0]}?" if found else "see docs/configuration.md for the names")


def _value(text: str, kind: Any) -> tuple[Any, str | None]:
    kind = bare(kind)
    if kind is not Any and get_origin(kind) not in (tuple, dict) and not (isinstance(kind, type) and issubclass(kind, Section)):
        return (None if text.strip() in ("null", "~") else text), None
    document = config_yaml.read(text)
    if document.errors:
        return (text, None) if kind is Any else (None, "cannot be read as YAML or JSON; write a list like '[a, b]' or a mapping")
    return document.tree, None


def interpolate(tree: Any, env: Mapping[str, str]) -> Iterator[tuple[Path, str | None]]:
    """Replace, in place, what names variables in the texts of `tree`. Yields each path touched, with what is wrong or None."""
    stack: list[tuple[Path, Any]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        for key, value in items:
            here = (*path, key)
            if isinstance(value, dict | list):
                stack.append((here, value))
            elif isinstance(value, str):
                text, wrong = _substitute(value, env)
                if wrong is not None or text != value or _EMBEDDED.search(value):
                    node[key] = text
                    yield here, wrong


def _substitute(value: str, env: Mapping[str, str]) -> tuple[str, str | None]:
    whole = _WHOLE.fullmatch(value)
    if whole is not None:
        return _lookup(whole[1], env)
    wrong: list[str] = []

    def replace(match: re.Match[str]) -> str:
        text, problem = _lookup(match[1], env)
        if problem is not None:
            wrong.append(problem)
        return text

    out = _EMBEDDED.sub(replace, value)
    if not wrong:
        shell = _SHELL.fullmatch(value)
        if shell is not None:
            return value, f"is a shell variable, which is not replaced here; write ${{env.{shell[1] or shell[2]}}}"
        if "${env." in _EMBEDDED.sub("", value):
            return value, "has a ${env. without its closing brace; write ${env.NAME}"
    return out, "; ".join(dict.fromkeys(wrong)) or None


def _lookup(name: str, env: Mapping[str, str]) -> tuple[str, str | None]:
    if not _VARIABLE.fullmatch(name):
        return "", "names no environment variable; write ${env.NAME}"
    if name not in env:
        return "", f"the environment variable {name} is not set; set it or write the value"
    return env[name], None
