"""What tokens cost, in whole billionths of a dollar. Pure but for the list prices of public models.

Your own rates (`prices` in the configuration) come first. Public ones come from the package genai-prices, which carries its
data and is asked nothing over the network: for a backend whose URL is a provider's, and for names only one provider uses (gpt-4o,
claude-…, gemini-…). A model you host yourself costs nothing unless you say what. A price by the GPU hour is not known per
request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from llmtap.core.config import Price

_NANO = 1_000_000_000
OWN = "own"

#: models of one provider each; open weights under similar names (gpt-oss) are everybody's
_CLOSED = (
    (re.compile(r"(?!gpt-oss)(gpt-|chatgpt-|o[134](-|$)|text-embedding-(3|ada))"), "openai"),
    (re.compile(r"claude-"), "anthropic"),
    (re.compile(r"gemini-"), "google"),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """One row of `prices`: nano-dollars a million tokens (None: by the hour), or an hour of the machine."""

    provider: str
    model_glob: str
    valid_from: str | None
    in_nano: int | None
    out_nano: int | None
    cached_nano: int | None
    gpu_hour_nano: int | None


def own_rates(prices: Sequence[Price]) -> tuple[Rate, ...]:
    """The configuration's prices."""
    return tuple(
        Rate(
            price.provider or OWN,
            price.model,
            price.valid_from.isoformat() if price.valid_from is not None else None,
            _nano(price.input_usd_per_million),
            _nano(price.output_usd_per_million),
            _nano(price.cached_usd_per_million),
            _nano(price.gpu_hour_usd),
        )
        for price in prices
    )


def choose(rates: Sequence[Rate], models: Sequence[str], day: str) -> Rate | None:
    """The rate for the first of `models` that has one: of the first pattern that fits, the latest that holds on `day`."""
    for model in models:
        for first in rates:
            if not fnmatchcase(model, first.model_glob):
                continue
            valid = [r for r in rates if r.model_glob == first.model_glob and (r.valid_from or "") <= day]
            if valid:
                return max(valid, key=lambda rate: rate.valid_from or "")
    return None


def cost_of(rate: Rate, prompt: int, completion: int, cached: int) -> int | None:
    """Nano-dollars of one exchange's tokens; None when the rate is by the hour."""
    if rate.in_nano is None or rate.out_nano is None:
        return None
    cached = min(max(cached, 0), prompt)
    cheap = rate.in_nano if rate.cached_nano is None else rate.cached_nano
    return ((prompt - cached) * rate.in_nano + cached * cheap + completion * rate.out_nano + 500_000) // 1_000_000


def list_price(models: Sequence[str], url: str | None) -> Rate | None:
    """The list price of the first of `models` that has one at the backend of this URL."""
    if url is not None and is_public(url):
        return next((rate for model in models if (rate := public_rate(model, url=url)) is not None), None)
    for model in models:
        for pattern, provider in _CLOSED:
            if pattern.match(model) and (rate := public_rate(model, provider=provider)) is not None:
                return rate
    return None


class RateBook:
    """Rates by model, backend and day, each found once. `urls`: of the backends, by name."""

    def __init__(self, own: Sequence[Rate] = (), urls: Mapping[str, str] | None = None) -> None:
        self._own = tuple(own)
        self._urls = dict(urls or {})
        self._found: dict[tuple[str | None, str | None, str | None, int | str], Rate | None] = {}

    def rate(self, served: str | None, asked: str | None, backend: str | None, day: int | str) -> Rate | None:
        """The rate for a reply of the model `served` to a request for `asked`. `day`: days since 1970-01-01 (UTC), or a date
        as `2026-11-21`."""
        key = (served, asked, backend, day)
        try:
            return self._found[key]
        except KeyError:
            pass
        if len(self._found) > 10_000:
            self._found.clear()
        models = [name for name in dict.fromkeys((served, asked)) if name]
        written = day if isinstance(day, str) else datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()
        found = choose(self._own, models, written) or list_price(models, self._urls.get(backend or ""))
        self._found[key] = found
        return found


def is_public(url: str) -> bool:
    """Can this URL be a provider's? Addresses and names without a dot are one's own."""
    host = urlsplit(url).hostname or ""
    return "." in host and not re.fullmatch(r"[\d.]+|.*\.(local|localhost|lan|internal)", host)


def public_rate(model: str, *, url: str | None = None, provider: str | None = None) -> Rate | None:
    """A provider's list price (the base tier), None when it is not known."""
    from genai_prices import Usage, calc_price  # 0.2 s and only with public models

    try:
        usage = Usage(input_tokens=0, output_tokens=0)
        if url is not None:
            found = calc_price(usage, model, provider_api_url=url)
        else:
            found = calc_price(usage, model, provider_id=provider)
    except LookupError:
        return None
    price = found.model_price
    return Rate(
        found.provider.id,
        found.model.id,
        None,
        _nano(_base(getattr(price, "input_mtok", None))) or 0,
        _nano(_base(getattr(price, "output_mtok", None))) or 0,
        _nano(_base(getattr(price, "cache_read_mtok", None))),
        None,
    )


def _base(value: Any) -> Any:
    return getattr(value, "base", value)


def _nano(usd: Any) -> int | None:
    return None if usd is None else round(usd * _NANO)
