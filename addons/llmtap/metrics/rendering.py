"""Dumped families as text and as plain data, fast: a scrape of a busy gateway has ten thousand lines.

What comes out is what prometheus_client would write (a test holds one against the other), at a tenth of its time: the labels of
a histogram are written once and not for each bucket. Dumps are plain data, so this may run in any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from llmtap.metrics.buckets import edges
from llmtap.metrics.exposition import escaped

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
Dump = list[dict[str, Any]]


def accepts_openmetrics(accept: str) -> bool:
    """Whether a client that sends this Accept header prefers OpenMetrics to the plain text format."""
    wanted = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((p.partition("=")[2] for p in parameters if p.startswith("q=")), "1")
        try:
            value = float(quality)
        except ValueError:
            continue
        if kind in wanted:
            wanted[kind] = max(wanted[kind], value)
    return wanted["application/openmetrics-text"] > 0 and wanted["application/openmetrics-text"] >= wanted["text/plain"]


def text(dumped: Dump, openmetrics: bool = False, created: bool = True) -> bytes:
    """An exposition, in the text format 0.0.4 or in OpenMetrics 1.0.0. `created`: with the times each set of labels began."""
    lines: list[str] = []
    for family in dumped:
        kind, name = family["kind"], family["name"]
        told = f"{name}_total" if kind == "counter" and not openmetrics else name
        help_text = family["help"].replace("\\", "\\\\").replace("\n", "\\n")
        lines += (f"# HELP {told} {help_text}", f"# TYPE {told} {kind}")
        births: list[str] = []
        for labels, values in _rows(family):
            own = ",".join(f'{key}="{escaped(value)}"' for key, value in zip(family["labels"], labels, strict=True))
            braced = f"{{{own}}}" if own else ""
            if kind == "histogram":
                counts, total, born = values
                start = f'{name}_bucket{{{own}{"," if own else ""}le="'
                seen = 0
                for le, n in zip(edges(tuple(family["bounds"])), counts, strict=True):
                    seen += n
                    lines.append(f'{start}{le}"}} {seen}.0')
                lines += (f"{name}_count{braced} {seen}.0", f"{name}_sum{braced} {_number(total)}")
            else:
                value, born = values
                lines.append(f"{told if kind == 'gauge' else name + '_total'}{braced} {_number(value)}")
            if created and kind != "gauge":
                births.append(f"{name}_created{braced} {_number(born)}")
                if openmetrics:
                    lines.append(births.pop())
        if births:
            lines += (f"# HELP {name}_created {help_text}", f"# TYPE {name}_created gauge", *births)
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def plain(dumped: Dump) -> dict[str, Any]:
    """The same as `core.snapshot.snapshot` gives: `{metric: {"type", "help", "samples": [{"name", "labels", "value"}]}}`."""
    out: dict[str, Any] = {}
    for family in dumped:
        kind, name = family["kind"], family["name"]
        samples: list[dict[str, Any]] = []
        for labels, values in _rows(family):
            named = dict(zip(family["labels"], labels, strict=True))
            if kind == "histogram":
                seen = 0
                for le, n in zip(edges(tuple(family["bounds"])), values[0], strict=True):
                    seen += n
                    samples.append({"name": f"{name}_bucket", "labels": {**named, "le": le}, "value": seen})
                samples.append({"name": f"{name}_count", "labels": named, "value": seen})
                samples.append({"name": f"{name}_sum", "labels": named, "value": values[1]})
            else:
                samples.append({"name": f"{name}_total" if kind == "counter" else name, "labels": named, "value": values[0]})
        out[name] = {"type": kind, "help": family["help"], "samples": samples}
    return out


def _rows(family: dict[str, Any]) -> Iterator[tuple[Iterable[str], list[Any]]]:
    """Label values and numbers of a family that are to be told."""
    for labels, *values in family["rows"]:
        empty = not any(values[0]) if family["kind"] == "histogram" else not values[0]
        if family["zeros"] or not empty:
            yield labels, values


def _number(value: float) -> str:
    text = repr(float(value))
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)
