"""What `llmtap up` and `llmtap status` show of a run: aligned text that reads the same on a terminal, in a file and in a pipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS = {"ready": "green", "up": "green", "failed": "red", "down": "red", "starting": "yellow", "stopping": "yellow"}


def print_table(file: TextIO, rows: Iterable[Sequence[str]], *, header: Sequence[str] | None = None) -> None:
    """Columns side by side, two spaces apart. Nothing is cut or wrapped (URLs are copied); states are coloured on a terminal."""
    data = [list(row) for row in rows]
    if not data:
        return
    table = Table(box=None, show_header=header is not None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in header if header is not None else [""] * max((len(row) for row in data), default=0):
        table.add_column(title, no_wrap=True)
    for row in data:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell.partition(" ")[0].rstrip(","), "")) for cell in row))
    columns = zip(*data, header or data[0], strict=True) if data else ()
    console = Console(file=file, highlight=False, width=sum(max(map(len, column)) + 2 for column in columns) or None)
    with console.capture() as captured:
        console.print(table)
    # rich fills lines with blanks to the right, which a terminal narrower than the line would wrap
    file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def process_states(state: Mapping[str, Any]) -> dict[str, str]:
    """Name of each process -> its state in words, with the reason when there is one."""
    return {
        process["name"]: process["state"] + (f" ({process['error']})" if process.get("error") else "")
        for process in state.get("processes", [])
    }


def gateway_state(states: Mapping[str, str]) -> str:
    """That of the gateway in words; of several workers, how many are ready, and what is with the others."""
    if "gateway" in states:
        return states["gateway"]
    workers = {name: words for name, words in states.items() if name.startswith("gateway-")}
    others = [f"{name} {words}" for name, words in workers.items() if words != "ready"]
    ready = len(workers) - len(others)
    if not workers or not others:
        return f"ready, {ready} workers" if workers else ""
    return ", ".join([f"{ready} of {len(workers)} workers ready", *others])


def url_rows(state: Mapping[str, Any], seen: Mapping[str, str]) -> list[list[str]]:
    """Rows of the table of URLs. `seen`: what a look at backends that are not ours found, by name."""
    urls, states = state.get("urls", {}), process_states(state)
    rows = [["OpenAI base URL", urls.get("openai", ""), gateway_state(states)]]
    if urls.get("datasette"):
        rows.append(["Datasette", urls["datasette"], states.get("datasette", "")])
    if urls.get("metrics"):
        rows.append(["Metrics", urls["metrics"], ""])
    if urls.get("web"):
        rows.append(["Web UI", urls["web"], ""])
    for backend in state.get("backends", []):
        name, model = backend["name"], backend.get("model")
        said = states.get(name) or seen.get(name, "")
        rows.append([f"Backend {name}", backend["url"], ", ".join(part for part in (said, model) if part)])
    return rows


def try_line(base_url: str, model: str) -> str:
    """One command to paste, which any shell understands."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
    return f"curl -s {base_url}/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"


def up_line(base_url: str) -> str:
    """The command that starts an engine, to paste."""
    body = json.dumps({"model": "MODEL"})
    return f"curl -s {base_url}/api/v1/inference/up -H 'content-type: application/json' -d {shlex.quote(body)}"


def size(count: float | None) -> str:
    """Bytes in words: 0 B, 12.3 kB, 4.5 GB; "-" for unknown."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
