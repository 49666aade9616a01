"""Prometheus' text format read forgivingly, and several servers' metrics put together under one label.

A server's metrics are whatever it sends: lines that are no samples are counted and left out, and nothing it sends can
break, outgrow or pass for another's part of the result. Reads the text format 0.0.4 and what OpenMetrics shares with it.
Format: prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_LINE = 16 * 1024
MAX_SAMPLES = 50_000
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\[\\n"])*)"\s*(,|(?=\}))')
_VALUE = re.compile(r"[ \t]+([+-]?(?:[0-9.]+(?:[eE][+-]?[0-9]+)?|[iI]nf|[nN]a[nN]))(?:[ \t]|$)")
_OPEN, _CLOSE = re.compile(r"[ \t]*\{"), re.compile(r"\s*\}")
_TYPES = {"counter": "counter", "gauge": "gauge", "histogram": "histogram", "summary": "summary", "info": "gauge"}
_PARTS = ("_bucket", "_count", "_sum")

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Family:
    """One metric. `samples`: (name, labels as they stand in the text, still escaped; value as text)."""

    name: str
    kind: str = "untyped"
    help: str = ""
    samples: list[tuple[str, Labels, str]] = field(default_factory=list)


@dataclass(slots=True)
class Parsed:
    """The families of a text in its order, and how many of its lines were left out."""

    families: dict[str, Family] = field(default_factory=dict)
    bad_lines: int = 0


def parse(text: str) -> Parsed:
    """Reads a whole text. Raises nothing; time and memory are linear in its length."""
    out = Parsed()
    seen: set[tuple[str, Labels]] = set()
    for line in text.split("\n"):
        line = line.strip(" \t\r")
        if not line:
            continue
        if len(line) > MAX_LINE:
            out.bad_lines += 1
        elif line[0] == "#":
            _comment(out.families, line)
        else:
            sample = _sample(line)
            if sample is None or sample[:2] in seen or len(seen) >= MAX_SAMPLES:
                out.bad_lines += 1
                continue
            seen.add(sample[:2])
            _home(out.families, sample[0]).samples.append(sample)
    out.families = {name: family for name, family in out.families.items() if family.samples}
    return out


def merge(texts: Mapping[str, Parsed], label: str, reserved: Iterable[str] = ()) -> list[str]:
    """The lines of all texts' families, each sample with `label` naming the text it is from.

    A label of that name that was there is kept as `exported_...`, as Prometheus does. Where texts disagree about a
    family's type it is untyped. Families named in `reserved` are left out.
    """
    lines: list[str] = []
    left_out = frozenset(reserved)
    for name in dict.fromkeys(name for parsed in texts.values() for name in parsed.families):
        if name in left_out:
            continue
        found = {where: parsed.families[name] for where, parsed in texts.items() if name in parsed.families}
        kinds = {family.kind for family in found.values()}
        text = next((family.help for family in found.values() if family.help), "")
        if text:
            lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kinds.pop() if len(kinds) == 1 else 'untyped'}")
        for where, family in found.items():
            own = f'{label}="{escaped(where)}"'
            for sample, labels, value in family.samples:
                rest = "".join(f',{_apart(key, label, labels)}="{text}"' for key, text in labels)
                lines.append(f"{sample}{{{own}{rest}}} {value}")
    return lines


def escaped(value: str) -> str:
    """A label value as it stands between quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _apart(key: str, label: str, labels: Labels) -> str:
    if key != label:
        return key
    taken = {name for name, _ in labels}
    while key in taken:
        key = f"exported_{key}"
    return key


def _comment(families: dict[str, Family], line: str) -> None:
    parts = line[1:].split(None, 2)
    if len(parts) < 2 or parts[0] not in ("HELP", "TYPE") or not _NAME.fullmatch(parts[1]):
        return
    family = families.setdefault(parts[1], Family(parts[1]))
    if family.samples or len(parts) < 3:
        return
    if parts[0] == "HELP":
        family.help = parts[2]
    else:
        family.kind = _TYPES.get(parts[2], "untyped")


def _sample(line: str) -> tuple[str, Labels, str] | None:
    name = _NAME.match(line)
    if name is None:
        return None
    at, labels = name.end(), []
    opened = _OPEN.match(line, at)
    if opened is not None:
        at = opened.end()
        while (label := _LABEL.match(line, at)) is not None:
            labels.append((label[1], label[2]))
            at = label.end()
        closing = _CLOSE.match(line, at)
        if closing is None or len({key for key, _ in labels}) != len(labels):
            return None
        at = closing.end()
    value = _VALUE.match(line, at) if at < len(line) and line[at] in " \t" else None
    if value is None:
        return None
    try:
        float(value[1])
    except ValueError:
        return None
    return name[0], tuple(labels), value[1]


def _home(families: dict[str, Family], sample: str) -> Family:
    """The family a sample belongs to, by the types that were declared before it."""
    found = families.get(sample)
    if found is not None:
        return found
    for part in _PARTS:
        whole = families.get(sample.removesuffix(part)) if sample.endswith(part) else None
        if whole is not None and whole.kind in ("histogram", "summary"):
            return whole
    if sample.endswith("_total"):
        bare = families.get(sample.removesuffix("_total"))  # OpenMetrics declares counters without the suffix
        if bare is not None and bare.kind == "counter" and not bare.samples:
            return families.setdefault(sample, Family(sample, "counter", bare.help))
    return families.setdefault(sample, Family(sample))
