"""Tables and sparklines of statistics for a terminal: numbers to the right, nothing cut when the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmtap_launcher.datasette.formats import dollars, duration, number

_BARS = " ▁▂▃▄▅▆▇█"
NONE = "–"


def spark(values: Sequence[float | None], width: int = 60) -> str:
    """A line of bars, 0 a blank and the highest full; stretches are added up where there are more values than `width`."""
    if len(values) > width:
        edges = [len(values) * n // width for n in range(width + 1)]
        values = [sum(v or 0 for v in values[a:b]) for a, b in pairwise(edges)]
    top = max((v or 0 for v in values), default=0)
    if top <= 0:
        return " " * len(values)
    # what is there at all is seen
    return "".join(_BARS[max(1, round((v or 0) / top * 8))] if v else _BARS[0] for v in values)


def ms(value: float | None) -> str:
    """A duration, or that there is none."""
    return NONE if value is None else duration(value)


def count(value: float | None) -> str:
    """A number, or that there is none."""
    return NONE if value is None else number(value)


def usd(value: float | None) -> str:
    """Dollars, or that there are none."""
    return NONE if value is None else dollars(value)


def share(part: float | None, whole: float = 1) -> str:
    """A percentage: `98.7 %`, `100 %`."""
    if part is None or not whole:
        return NONE
    percent = 100 * part / whole
    if percent in (0, 100):
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if 0.05 <= percent < 99.95 else f"{percent:.2g} %" if percent < 50 else f"{percent:.2f} %"


def tokens(value: float | None) -> str:
    """Token counts in few digits: `512`, `12.3 k`, `4.5 M`."""
    if value is None:
        return NONE
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5 or unit == " G":
            return f"{value:,.0f}{unit}" if not unit or value >= 99.95 else f"{value:.1f}{unit}"
        value /= 1000
    return NONE


def print_rows(file: TextIO, header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table; the first `left` columns are words, the others numbers."""
    data = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, title in enumerate(header):
        table.add_column(title, no_wrap=True, justify="left" if at < left else "right")
    for row in data:
        table.add_row(*(Text(cell, style="dim" if cell == NONE else "") for cell in row))
    width = sum(max((len(row[at]) for row in [header, *data]), default=0) + 2 for at in range(len(header)))
    # never narrower than its cells: a terminal wraps at its edge, a file keeps all
    console = Console(file=file, highlight=False, width=max(width, 20))
    with console.capture() as captured:
        console.print(table)
    file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def heading(file: TextIO, text: str) -> None:
    """A line above a table."""
    Console(file=file, highlight=False, soft_wrap=True).print(Text(f"\n{text}", style="bold"))
