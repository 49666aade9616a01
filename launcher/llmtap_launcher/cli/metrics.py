"""`llmtap metrics`."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from llmtap.core.rollup import quantile
from llmtap_launcher.cli.common import config_option, load_config
from llmtap_launcher.gateway_metrics import client_for, fetch_snapshot, snapshot_url
from llmtap_launcher.report import print_table


@click.command()
@click.argument("url", required=False)
@config_option
@click.option("--key", envvar="LLMTAP_KEY", help="Key to present, where the gateway demands one.  [env var: LLMTAP_KEY]")
@click.option("--match", metavar="PATTERN", help="Only metrics whose name contains this, or fits this pattern with * and ?.")
@click.option("--json", "as_json", is_flag=True, help="Print the snapshot as JSON.")
def metrics(url: str | None, config_path: Path | None, key: str | None, match: str | None, as_json: bool) -> None:
    """Show the metrics of a running gateway.

    URL: its address; by default the gateway the launcher runs, else that of the configuration. A histogram is shown with how
    many observations it has, their mean and percentiles (interpolated within a bucket).

    \b
    Example:
      llmtap metrics
      llmtap metrics http://127.0.0.1:8000 --match 'first_token'
    """
    config = load_config(config_path)
    with client_for(key) as client:
        snapshot = fetch_snapshot(client, snapshot_url(url, config))
    if match is not None:
        snapshot = {name: family for name, family in snapshot.items() if _fits(name, match)}
        if not snapshot:
            raise click.ClickException(f"no metric fits {match}")
    if as_json:
        click.echo(json.dumps(snapshot, indent=2))
        return
    for kind, header in (
        ("counter", ("counter", "labels", "value")),
        ("gauge", ("gauge", "labels", "value")),
        ("histogram", ("histogram", "labels", "count", "mean", "p50", "p95", "p99")),
    ):
        rows = [row for name, family in sorted(snapshot.items()) if family["type"] == kind for row in rows_of(name, family)]
        if rows:
            print_table(sys.stdout, rows, header=header)
            click.echo()


def rows_of(name: str, family: Mapping[str, Any]) -> Iterator[list[str]]:
    """The rows of one metric: a sample each, of a histogram one for each set of labels."""
    if family["type"] != "histogram":
        for sample in family["samples"]:
            yield [sample["name"], labels_text(sample["labels"]), number(sample["value"])]
        return
    found: dict[str, dict[str, Any]] = {}
    for sample in family["samples"]:
        labels = {key: value for key, value in sample["labels"].items() if key != "le"}
        one = found.setdefault(labels_text(labels), {"buckets": {}})
        part = sample["name"].removeprefix(name)
        if part == "_bucket":
            one["buckets"][sample["labels"]["le"]] = sample["value"]
        else:
            one[part] = sample["value"]
    seconds = name.endswith("_seconds")
    for text, one in found.items():
        count = one.get("_count", 0)
        values = [one.get("_sum", 0) / count if count else None, *(quantile(one["buckets"], q) for q in (0.5, 0.95, 0.99))]
        yield [name, text, number(count), *("-" if v is None else duration(v) if seconds else number(v) for v in values)]


def labels_text(labels: Mapping[str, str]) -> str:
    """`key=value` pairs; no control characters, whoever the gateway is."""
    text = " ".join(f"{key}={value}" for key, value in labels.items())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def number(value: float) -> str:
    """Whole numbers whole, others with as many places as tell something."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _fits(name: str, match: str) -> bool:
    return fnmatch.fnmatch(name, match) if set(match) & set("*?[") else match in name
