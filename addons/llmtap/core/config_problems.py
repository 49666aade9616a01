"""What is wrong with a configuration, said so that its writer can mend it: one line a problem, file, line, key, mend.

Values are shown only where they stand in the file as they are, in keys that hold no secret; never one that came from
the environment or a command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from llmtap.core.config_types import Section
from llmtap.core.errors import ConfigError

#: where a value is in the document: keys and list indexes from the root
Path = tuple[str | int, ...]

#: keys whose value, or any value below them, is never shown
SECRET_KEYS = frozenset({"api_key", "key", "key_sha256", "storage", "url", "args", "env", "command"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was given: a file (with its line), an environment variable or the command line."""

    source: str
    line: int | None = None
    literal: bool = False  # stands there as it is: may be shown


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong. `str()` is `FILE:LINE: KEY: what is wrong; mend`, always one line."""

    origin: Origin
    key: str
    message: str

    def __str__(self) -> str:
        where = self.origin.source if self.origin.line is None else f"{self.origin.source}:{self.origin.line}"
        return printable(": ".join(part for part in (where, self.key, self.message) if part))


def printable(text: str) -> str:
    """`text` on one line: line breaks and control characters escaped, so that a key or a value cannot forge output."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """The exception for some problems: its text a line each, the problems themselves in `problems`."""
    found = tuple(dict.fromkeys(problems))
    error = ConfigError("\n".join(map(str, found)))
    error.problems = found
    return error


def dotted(path: Path) -> str:
    """A path as users write it: `backends[0].launch.model`."""
    out = ""
    for part in path:
        shown = f"[{part}]" if isinstance(part, int) else part if len(part) <= 80 else part[:77] + "..."
        out += shown if isinstance(part, int) or not out else f".{shown}"
    return out


def bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            kinds = [a for a in get_args(annotation) if a is not NoneType]
            if len(kinds) != 1:
                return annotation
            annotation = kinds[0]
        else:
            return annotation


def keys_of(model: type[Section]) -> dict[str, Any]:
    """The keys of a section as the file has them, with the bare annotation of each."""
    return {field.alias or name: bare(field.annotation) for name, field in model.model_fields.items()}


def below(annotation: Any, part: str | int) -> Any:
    """The annotation under a key or index; None where there is none (unknown key, or not a container)."""
    kind = bare(annotation)
    if isinstance(kind, type) and issubclass(kind, Section):
        return keys_of(kind).get(str(part))
    arguments = get_args(kind)
    if get_origin(kind) is tuple and isinstance(part, int):
        return bare(arguments[0])
    if get_origin(kind) is dict and isinstance(part, str):
        return bare(arguments[1])
    return None


def all_keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key of the configuration, dotted, sections and lists before what is in them: `backends`, `backends[].name`."""
    for key, kind in keys_of(model).items():
        yield prefix + key
        inner = bare(get_args(kind)[0]) if get_origin(kind) is tuple else kind
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from all_keys(inner, f"{prefix}{key}." if inner is kind else f"{prefix}{key}[].")


def near(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word most like `word` (1: the same), or None. Case and hyphens do not count."""
    names = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None


def unknown_key(root: type[Section], path: Path) -> str:
    """What to say of a key that does not exist: the nearest of its section, else where such a key does exist."""
    section: Any = root
    for part in path[:-1]:
        section = below(section, part)
    siblings = list(keys_of(section)) if isinstance(section, type) and issubclass(section, Section) else []
    word = str(path[-1])
    elsewhere = [k for k in all_keys(root) if k.rpartition(".")[2] == word.lower().replace("-", "_")]
    guess = near(word, siblings, cutoff=0.8 if elsewhere else 0.6)
    if guess is not None:
        return f'no such key; did you mean "{guess}"?'
    if elsewhere:
        return f"no such key here; did you mean {' or '.join(elsewhere[:3])}?"
    return f"no such key; the keys here are {', '.join(siblings)}"


#: pydantic's error types whose words we replace; {…} are filled from the error's context
_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of reasonable size",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "model_type": "must be a mapping, lines of `key: value`",
    "model_attributes_type": "must be a mapping, lines of `key: value`",
    "dict_type": "must be a mapping, lines of `key: value`",
    "tuple_type": "must be a list, like [a, b]",
    "list_type": "must be a list, like [a, b]",
    "path_type": "must be a path; put it in quotes",
    "missing": "is missing; add it",
    "date_type": "must be a date, like 2026-01-31",
    "date_parsing": "must be a date, like 2026-01-31",
    "date_from_datetime_parsing": "must be a date, like 2026-01-31",
    "date_from_datetime_inexact": "must be a date, like 2026-01-31",
}


def _choices(model: type[Section], path: Path) -> list[str]:
    kind: Any = model
    for part in path:
        kind = below(kind, part)
    return [str(value) for value in get_args(kind)]


def _shown(value: Any, path: Path, origin: Origin) -> str:
    """`, not VALUE` where that is safe and short."""
    if not origin.literal or isinstance(value, dict | list | tuple) or SECRET_KEYS.intersection(path):
        return ""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f", not {text}" if 0 < len(text) <= 40 else ""


def message_for(error: ErrorDetails, root: type[Section], path: Path, value: Any, origin: Origin) -> str:
    """Plain words for one of pydantic's errors at `path`. `value` is what stands there."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(root, path)
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "llmtap":
        return str(context["message"])
    shown = _shown(value, path, origin)
    if kind == "literal_error":
        choices = _choices(root, path)
        guess = near(str(value), choices) if shown else None
        return f"must be one of {', '.join(choices)}{shown}" + (f'; did you mean "{guess}"?' if guess else "")
    words = _WORDS.get(kind)
    if words is None:
        return f"is not valid: {error['msg']}"
    if kind == "missing":
        return words
    if kind == "string_type" and (value is None or isinstance(value, dict | list | tuple)):
        words = "must be text"
    head, semicolon, mend = words.format(**context).partition(";")
    return head + shown + semicolon + mend


def walk(tree: Any, loc: Sequence[str | int]) -> tuple[Path, Any, bool]:
    """Follow pydantic's location through the document: (path that exists, value there, whether all of `loc` was used).

    Locations carry more than keys (`[key]`, names of union members), which no document has.
    """
    path: list[str | int] = []
    for part in loc:
        inner: dict[Any, Any] = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list) else {}
        if part not in inner:
            return tuple(path), tree, False
        tree = inner[part]
        path.append(part)
    return tuple(path), tree, True
