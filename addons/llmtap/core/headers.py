"""Headers as a tuple of (name, value) bytes, read and changed in one pass.

mitmproxy's `Headers` looks through all fields for each name it is asked for and writes them anew for each it sets: 3 us a
call, and a request has a dozen such questions. Values are text as HTTP has it: any bytes, decoded as UTF-8 with surrogates.
"""

from __future__ import annotations

from collections.abc import Mapping

Fields = tuple[tuple[bytes, bytes], ...]


def by_name(fields: Fields) -> dict[bytes, bytes]:
    """Lower-cased name → value. Several of one name are joined by a comma, as RFC 9110 5.2 allows."""
    found = {name.lower(): value for name, value in fields}
    if len(found) < len(fields):
        found = {}
        for name, value in fields:
            name = name.lower()
            found[name] = found[name] + b", " + value if name in found else value
    return found


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def changed(fields: Fields, changes: Mapping[bytes, bytes | None]) -> Fields:
    """`fields` with each name of `changes` (lower case) set to its value, or gone where that is None. Set headers keep
    the place and spelling of the first of their name; new ones come last, in the order of `changes`."""
    out = []
    done: set[bytes] = set()
    for field in fields:
        name = field[0].lower()
        if name not in changes:
            out.append(field)
        elif name not in done:
            done.add(name)
            value = changes[name]
            if value is not None:
                out.append((field[0], value))
    for name, value in changes.items():
        if value is not None and name not in done:
            out.append((name, value))
    return tuple(out)
