"""`llmtap top`."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmtap.core import rollup
from llmtap_launcher.cli.common import config_option, load_config
from llmtap_launcher.cli.metrics import duration, number
from llmtap_launcher.gateway_metrics import NoMetrics, client_for, fetch_snapshot, snapshot_url

_COLUMNS = ("model", "backend", "running", "waiting", "req/s", "tok/s", "TTFT p50", "TTFT p95", "errors", "requests")


@click.command()
@click.argument("url", required=False)
@config_option
@click.option("--key", envvar="LLMTAP_KEY", help="Key to present, where the gateway demands one.  [env var: LLMTAP_KEY]")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look twice, one interval apart, print and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a look instead of a table.")
def top(url: str | None, config_path: Path | None, key: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch a running gateway: what runs and waits, time to first token, tokens a second, errors, by model and backend.

    Rates and percentiles are of the last interval; where nothing happened in it, percentiles are those since the gateway's
    start, in parentheses. Errors and requests are counted since its start. Ctrl-C ends it.

    \b
    Example:
      llmtap top
      llmtap top http://127.0.0.1:8000 --once --json
    """
    config = load_config(config_path)
    address = snapshot_url(url, config)
    with client_for(key) as client:
        watch = Watch(client, address)
        watch.look()  # a mistake ends the command here, in one line
        pause = threading.Event()
        if once:
            pause.wait(interval)
            _print(watch.look(), as_json)
            return
        try:
            if as_json or not sys.stdout.isatty():
                while not pause.wait(interval):
                    _print(watch.look(), as_json)
            else:
                _live(watch, interval, pause)
        except KeyboardInterrupt:
            click.echo()


class Watch:
    """Looks at a gateway again and again; each look tells what happened since the one before."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = url
        self._before: Mapping[str, Any] | None = None
        self._at = 0.0

    def look(self) -> dict[str, Any]:
        """Raises NoMetrics when there is nothing to see."""
        snapshot = fetch_snapshot(self._client, self._url)
        now = time.monotonic()
        span = now - self._at if self._before is not None else None
        found = report(snapshot, self._before, span)
        self._before, self._at = snapshot, now
        return {"url": self._url, **found}


def report(snapshot: Mapping[str, Any], before: Mapping[str, Any] | None, span_s: float | None) -> dict[str, Any]:
    """What one look shows, as plain data. Times in seconds."""
    whole = {(row.model, row.backend): row for row in rollup.rows(snapshot)}
    recent = {(row.model, row.backend): row for row in rollup.rows(snapshot, before, span_s)}
    rows = []
    for at, row in sorted(whole.items()):
        last = recent.get(at)
        rows.append(
            {
                "model": row.model,
                "backend": row.backend,
                "running": row.running,
                "waiting": row.waiting,
                "requests": row.requests,
                "errors": row.errors,
                "prompt_tokens": row.prompt_tokens,
                "generation_tokens": row.generation_tokens,
                "ttft_p50_s": row.ttft_p50_s,
                "ttft_p95_s": row.ttft_p95_s,
                "recent": {
                    "span_s": span_s,
                    "requests": last.requests if last else 0,
                    "errors": last.errors if last else 0,
                    "requests_per_s": (last.requests_per_s or 0.0) if last else 0.0,
                    "tokens_per_s": (last.tokens_per_s or 0.0) if last else 0.0,
                    "ttft_p50_s": last.ttft_p50_s if last else None,
                    "ttft_p95_s": last.ttft_p95_s if last else None,
                },
            }
        )
    backends = {labels["backend"]: bool(value) for labels, value in rollup.samples(snapshot, "llmtap_backend_up")}
    return {
        "running": int(rollup.total(snapshot, "llmtap_requests_running") or 0),
        "waiting": int(rollup.total(snapshot, "llmtap_requests_waiting") or 0),
        "spool_bytes": rollup.total(snapshot, "llmtap_spool_bytes"),
        "spool_lag_s": rollup.total(snapshot, "llmtap_spool_lag_seconds"),
        "backends": backends,
        "models": rows,
    }


def picture(found: Mapping[str, Any]) -> Group:
    """One look as a table under a line of totals."""
    lag = found["spool_lag_s"]
    down = [name for name, up in found["backends"].items() if not up]
    head = Text(f"{found['url'].removesuffix('/internal/metrics')}   running {found['running']}   waiting {found['waiting']}   ")
    head.append(f"spool lag {'-' if lag is None else duration(lag)}", "red" if lag is not None and lag > 10 else "")
    head.append(f"   backends {len(found['backends']) - len(down)} up")
    if down:
        head.append(f", down: {', '.join(down)}", "red")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("model", "backend") else "right", no_wrap=True)
    for row in found["models"]:
        table.add_row(*_cells(row))
    return Group(head, Text(), table if found["models"] else Text("no requests yet", "dim"))


def _cells(row: Mapping[str, Any]) -> list[Text]:
    recent = row["recent"]

    def ttft(name: str) -> Text:
        if recent[name] is not None:
            return Text(duration(recent[name]))
        return Text("-" if row[name] is None else f"({duration(row[name])})", "dim")

    errors = Text(number(row["errors"]), "red" if recent["errors"] else "")
    plain = [row["model"], row["backend"], number(row["running"]), number(row["waiting"])]
    rates = [f"{recent['requests_per_s']:.1f}", f"{recent['tokens_per_s']:.0f}"]
    cells = [Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)) for text in (*plain, *rates)]
    return [*cells, ttft("ttft_p50_s"), ttft("ttft_p95_s"), errors, Text(number(row["requests"]))]


def _print(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, highlight=False, width=width).print(picture(found))


def _live(watch: Watch, interval: float, pause: threading.Event) -> None:
    with Live(picture(watch.look()), screen=True, auto_refresh=False) as live:
        while not pause.wait(interval):
            try:
                live.update(picture(watch.look()), refresh=True)
            except NoMetrics as error:  # it may be on its way back
                live.update(Text(str(error), "red"), refresh=True)
