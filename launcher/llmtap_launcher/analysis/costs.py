"""What a selection cost, by key, model, backend and time; what caches saved; what it will come to."""

from __future__ import annotations

import calendar
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Literal

from llmtap.policy.pricing import Rate
from llmtap_launcher.analysis.load import Step, load
from llmtap_launcher.analysis.report import groups
from llmtap_launcher.analysis.tally import Tally
from llmtap_launcher.selection import Selection
from llmtap_launcher.store.digests import Digest

_MILLION = 1_000_000
#: the forecast looks at the mean of so many days, and at how it moved within so many
_MEAN_DAYS, _LOOK_DAYS = 7, 28
NAMES: tuple[Literal["key", "model", "backend"], ...] = ("key", "model", "backend")


def costs(conn: sqlite3.Connection, selection: Selection, by: Sequence[str] = ()) -> dict[str, Any]:
    """The bill of a selection: `total`, `by_key`, `by_model`, `by_backend`, `by_time` (those of `by`; none given: key, model,
    day), `prices` that were used, `forecast`. Dollars."""
    step: Step = "hour" if "hour" in by else "day"
    loaded = load(conn, selection, step, exact=0)
    prices = {number: Rate(*rate) for number, *rate in conn.execute("SELECT * FROM prices ORDER BY id")}
    out: dict[str, Any] = {
        "since": selection.since,
        "until": selection.until,
        "first": loaded.first,
        "last": loaded.last,
        "notes": loaded.notes,
        "total": bill(loaded.total.digest, prices),
    }
    wanted = set(by) or {"key", "model", "day"}
    for name in NAMES:
        if name in wanted:
            rows = [{name: value, **bill(tally.digest, prices)} for value, tally in loaded.by(name).items()]
            out[f"by_{name}"] = sorted(rows, key=lambda row: (-row["cost_usd"], -row["requests"]))
    if wanted & {"hour", "day"}:
        out["step"] = step
        out["by_time"] = [{"time": period, **bill(tally.digest, prices)} for period, tally in loaded.times.items()]
    used = _used(loaded.total)
    out["prices"] = [_price(number, prices[number]) for number in sorted(used & set(prices))]
    out["forecast"] = None if selection.tags else forecast(_days(conn, selection))
    return out


def lines(made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What `costs` found as one object a group, for JSON lines: `group` says of what."""
    yield {"group": "total", **made["total"], "forecast": made["forecast"]}
    yield from groups(made, NAMES)


def bill(digest: Digest, prices: Mapping[int, Rate]) -> dict[str, Any]:
    """The sums of a digest. `unpriced_tokens`: of models without a price; `saved_…`: what tokens out of backends' prefix caches
    cost less, and what replies out of the gateway's own cache would have cost."""
    paid, hits = (_by_price(digest.get(kind, {})) for kind in ("paid", "hit"))
    less = sum(_less(prices.get(number), counts) for number, counts in paid.items())
    avoided = sum(_full(prices.get(number), counts) for number, counts in hits.items())
    unpriced = paid.get(0, {})
    counted: Mapping[str, int] = digest.get("tokens", {})
    return {
        "requests": sum(digest.get("went", {}).values()),
        "prompt_tokens": counted.get("prompt", 0),
        "completion_tokens": counted.get("completion", 0),
        "cached_tokens": counted.get("cached", 0),
        "unpriced_tokens": unpriced.get("prompt", 0) + unpriced.get("completion", 0),
        "cost_usd": sum(counts.get("cost", 0) for counts in paid.values()) / 1e9,
        "saved_by_prefix_cache_usd": less / 1e9,
        "saved_by_gateway_cache_usd": avoided / 1e9,
    }


def _by_price(counts: Mapping[str, int]) -> dict[int, dict[str, int]]:
    out: dict[int, dict[str, int]] = {}
    for name, n in counts.items():
        number, _, what = name.partition(".")
        out.setdefault(int(number), {})[what] = n
    return out


def _less(price: Rate | None, counts: Mapping[str, int]) -> int:
    if price is None or price.in_nano is None or price.cached_nano is None:
        return 0
    return counts.get("cached", 0) * (price.in_nano - price.cached_nano) // _MILLION


def _full(price: Rate | None, counts: Mapping[str, int]) -> int:
    if price is None or price.in_nano is None or price.out_nano is None:
        return 0
    return (counts.get("prompt", 0) * price.in_nano + counts.get("completion", 0) * price.out_nano) // _MILLION


def _used(total: Tally) -> set[int]:
    names = [name for kind in ("paid", "hit") for name, n in total.digest.get(kind, {}).items() if n]
    return {int(name.partition(".")[0]) for name in names}


def _price(number: int, price: Rate) -> dict[str, Any]:
    def usd(nano: int | None) -> float | None:
        return None if nano is None else nano / 1e9

    return {
        "id": number,
        "provider": price.provider,
        "model": price.model_glob,
        "valid_from": price.valid_from,
        "input_usd_per_million": usd(price.in_nano),
        "output_usd_per_million": usd(price.out_nano),
        "cached_usd_per_million": usd(price.cached_nano),
        "gpu_hour_usd": usd(price.gpu_hour_nano),
    }


def _days(conn: sqlite3.Connection, selection: Selection) -> dict[date, float]:
    """Dollars by day, of the selection's models, keys and backends; up to its end."""
    where, values = Selection(models=selection.models, keys=selection.keys, backends=selection.backends).where("u")
    rows = conn.execute(
        f"SELECT day, sum(cost_nanousd) FROM usage_daily u WHERE day < :until AND {where} GROUP BY day",
        {**values, "until": selection.until or "9999"},
    )
    return {date.fromisoformat(day): nano / 1e9 for day, nano in rows}


def forecast(days: Mapping[date, float]) -> dict[str, Any] | None:
    """What it will come to if it goes on as lately: the mean of the last seven whole days, which a week's rhythm does not move,
    for thirty days and for the rest of the month; `low` and `high` by the cheapest and dearest seven days in a row of the last
    four weeks. The last day there is counts as unfinished. None without a whole day that cost anything."""
    if not days:
        return None
    last = max(days)
    first = min(days)
    whole = [days.get(last - timedelta(days=n), 0.0) for n in range(1, _LOOK_DAYS + 1) if last - timedelta(days=n) >= first]
    if not any(whole):
        return None
    length = min(_MEAN_DAYS, len(whole))
    means = [sum(whole[at : at + length]) / length for at in range(len(whole) - length + 1)]
    spent = sum(cost for day, cost in days.items() if (day.year, day.month) == (last.year, last.month))
    left = calendar.monthrange(last.year, last.month)[1] - last.day
    today = max(0.0, means[0] - days[last])  # what is still to come of the unfinished day

    def month(mean: float) -> float:
        return spent + today + left * mean

    return {
        "from_days": length,
        "daily_usd": means[0],
        "next_30_days_usd": 30 * means[0],
        "next_30_days_low_usd": 30 * min(means),
        "next_30_days_high_usd": 30 * max(means),
        "month": f"{last:%Y-%m}",
        "month_spent_usd": spent,
        "month_expected_usd": month(means[0]),
    }
