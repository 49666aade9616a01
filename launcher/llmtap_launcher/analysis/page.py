"""A report of `llmtap analyze` as one HTML page that needs nothing else: charts are inline SVG, there is no script, and what was
captured (names of models and keys) is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from llmtap_launcher.analysis.report import NAMES, Report, filled
from llmtap_launcher.analysis.screen import COLUMNS, METRICS, WITHOUT, cells
from llmtap_launcher.analysis.tables import NONE, count, ms, share, tokens, usd
from llmtap_launcher.datasette import charts
from llmtap_launcher.datasette.charts import Series

_MOST_STEPS = 370
_STYLE = """
:root { color-scheme: light; --ink: #1b2333; --soft: #5b6579; --line: #e2e6ed; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; color: var(--ink); background: #f6f7f9;
  margin: 0 auto; max-width: 1240px; padding: 24px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 15px; margin: 0 0 8px; }
.sub { color: var(--soft); margin: 2px 0 18px; font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 16px; }
.boxes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px; margin-bottom: 16px; }
.box { position: relative; background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; min-width: 0;
  overflow-x: auto; }
.wide { margin-bottom: 16px; }
.value { font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.name { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; } td { text-align: right; }
th, td { padding: 3px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; max-width: 340px; overflow: hidden; text-overflow: ellipsis; }
.legend { float: right; font-size: 12px; color: var(--soft); font-weight: 400; }
.legend span { margin-left: 10px; }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 4px;
  background: var(--c); }
.s1 { --c: #3f78c9; } .s2 { --c: #e0a03a; } .s3 { --c: #46a37a; } .bad { --c: #cf4b42; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .grid { stroke: #e9edf3; } svg text { fill: #8a93a5; font-size: 11px; }
svg text.x { text-anchor: middle; } svg text.y { text-anchor: end; }
svg rect { fill: var(--c); } svg polyline { fill: none; stroke: var(--c); stroke-width: 1.7; stroke-linejoin: round; }
svg circle.lone { fill: var(--c); } svg circle.point { fill: transparent; } svg circle.point:hover { fill: var(--c); }
"""
_PAGE = Markup(
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    "<title>llmtap: {title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
)


def page(made: Report, source: str, made_at: str) -> str:
    """The whole page. `source`: of what; `made_at`: when, for its head."""
    total = made["total"]
    span = f"{made['first']} to {made['last']} (UTC)" if made["first"] else "no exchanges in this selection"
    parts = [
        Markup('<h1>{}</h1>\n<p class="sub">{}; made {}{}</p>').format(
            source, span, made_at, "" if made["exact"] else "; percentiles from histograms"
        ),
        *(Markup('<p class="sub">{}</p>').format(note) for note in made["notes"]),
        _tiles(total),
        _charts(made),
        _box("Distribution", ("", "p50", "p90", "p95", "p99", "values"), [
            (words, *(form(total[name][f"p{p}"]) for p in (50, 90, 95, 99)), count(total[name]["n"]))
            for words, name, form in METRICS
        ]),
        *(
            _box(f"By {name}", (name, *COLUMNS), [cells(row[name] or WITHOUT[name], row) for row in made[f"by_{name}"]])
            for name in NAMES if made.get(f"by_{name}")
        ),
        _box("Errors", ("type", "requests"), [(name, count(n)) for name, n in total["errors"].items()]),
        _box("Finish reasons", ("reason", "requests"), [(name, count(n)) for name, n in total["finish_reasons"].items()]),
    ]  # fmt: skip
    return str(_PAGE.format(title=source, style=Markup(_STYLE), body=Markup("\n").join(part for part in parts if part)))


def _tiles(total: dict[str, Any]) -> Markup:
    tiles = (
        ("requests", count(total["requests"])),
        ("succeeded", share(total["success_rate"])),
        ("failed", count(total["failed"])),
        ("aborted by clients", count(total["aborted"])),
        ("tokens in", tokens(total["prompt_tokens"])),
        ("of them cached", share(total["cached_tokens"], total["prompt_tokens"])),
        ("tokens out", tokens(total["completion_tokens"])),
        ("cost", usd(total["cost_usd"]) if total["cost_usd"] else NONE),
    )
    shown = (
        Markup('<div class="box"><div class="value">{}</div><div class="name">{}</div></div>').format(v, n) for n, v in tiles
    )
    return Markup('<div class="tiles">{}</div>').format(Markup("").join(shown))


def _charts(made: Report) -> Markup:
    steps = filled(made.get("by_time", ()), made.get("step", "day"), _MOST_STEPS)
    if not steps:
        return Markup("")
    hourly = made["step"] == "hour"
    times = [period.replace("T", " ") + (":00" if hourly else "") for period, _ in steps]

    def of(*path: str) -> list[float | None]:
        out: list[float | None] = []
        for _, row in steps:
            value: Any = row
            for name in path:
                value = value and value[name]
            out.append(value)
        return out

    drawn = (
        (f"Requests by {made['step']}", charts.bars, count, [
            Series(name, of(name), kind) for name, kind in (("succeeded", "s1"), ("aborted", "s2"), ("failed", "bad"))]),
        (f"Tokens by {made['step']}", charts.bars, tokens, [
            Series("in", of("prompt_tokens"), "s1"), Series("out", of("completion_tokens"), "s3")]),
        ("Time to first token", charts.lines, ms, _percentiles(of, "ttft_ms")),
        ("Between tokens", charts.lines, ms, _percentiles(of, "itl_ms")),
        ("Whole request", charts.lines, ms, _percentiles(of, "duration_ms")),
        ("Tokens a second, median", charts.lines, count, [Series("p50", of("tokens_per_second", "p50"), "s3")]),
    )  # fmt: skip
    boxes = [
        Markup('<div class="box"><h2>{}{}</h2>{}</div>').format(title, _legend(series), draw(series, times, form))
        for title, draw, form, series in drawn
    ]
    return Markup('<div class="boxes">{}</div>').format(Markup("").join(boxes))


def _percentiles(of: Any, metric: str) -> list[Series]:
    return [Series(p, of(metric, p), kind) for p, kind in (("p50", "s1"), ("p95", "s2"), ("p99", "bad"))]


def _legend(series: Sequence[Series]) -> Markup:
    names = (Markup('<span class="{}">{}</span>').format(s.kind, s.label) for s in series)
    return Markup('<span class="legend">{}</span>').format(Markup("").join(names))


def _box(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    if not rows:
        return Markup("")
    head = Markup("").join(Markup("<th>{}</th>").format(cell) for cell in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row)) for row in rows
    )
    return Markup('<div class="box wide"><h2>{}</h2><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        title, head, body
    )
