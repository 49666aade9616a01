"""Which keys of the configuration wait for their feature, in one table.

A key in `NOT_YET` may be given its default, or one of the values that already work, and nothing else: what is not built
is refused, never silently ignored. To make a feature available remove its entry; the loader, the reference page and the
example follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmtap import __version__
from llmtap.core.config_problems import Path
from llmtap.core.config_types import Section


@dataclass(frozen=True, slots=True)
class Except:
    """All values work but some: `what` they are (a noun in the plural), `refuses` knows them."""

    what: str
    refuses: Callable[[Any], bool]


#: values that work beyond the default (none: only the default does), or an `Except`
Works = tuple[object, ...] | Except

ONLY_THE_DEFAULT: Works = ()

#: dotted key (or whole section; `*` is any item of a list) -> what of it already works
NOT_YET: dict[str, Works] = {}


@dataclass(frozen=True, slots=True)
class Refused:
    """A key set to something that is not available yet."""

    path: Path
    message: str


def entry_for(key: str, table: dict[str, Works] | None = None) -> Works | None:
    """The table's entry for a dotted key (`backends.*.kind`) or for a section above it; None: fully available."""
    table = NOT_YET if table is None else table
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        found = table.get(".".join(parts[:n]))
        if found is not None:
            return found
    return None


def not_yet(config: Section, table: dict[str, Works] | None = None) -> Iterator[Refused]:
    """What `config` asks for that is not available yet."""
    yield from _refused(config, (), "", NOT_YET if table is None else table)


def _refused(section: Section, path: Path, pattern: str, table: dict[str, Works]) -> Iterator[Refused]:
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        here, dotted, value = (*path, key), f"{pattern}{key}", getattr(section, name)
        works = entry_for(dotted, table)
        if works is not None and not isinstance(value, Section):
            default = field.get_default(call_default_factory=True)
            if value != default and (works.refuses(value) if isinstance(works, Except) else value not in works):
                yield Refused(here, _message(default, works))
                continue
        if isinstance(value, Section):
            yield from _refused(value, here, f"{dotted}.", table)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Section):
                    yield from _refused(item, (*here, index), f"{dotted}.*.", table)


def _message(default: Any, works: Works) -> str:
    release = f"not available yet (llmtap {__version__})"
    if isinstance(works, Except):
        return f"{works.what} are {release}; use something else"
    if default is None:
        mend = "remove it"
    elif default == () or default == {}:
        mend = "remove it or leave it empty"
    else:
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        mend = f"remove it or leave the default {shown}" + "".join(f", or use {value}" for value in works)
    return f"{release}; {mend}"
