"""Conditions on ratings: `up`, `down`, `helpfulness>=4`, `verdict=good`, as SQL over `exchanges e`."""

from __future__ import annotations

import re
from typing import Any

from llmtap.core.errors import LlmtapError

_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*")
_THUMBS = {"up": ("thumb", ">", 0.0), "down": ("thumb", "<", 0.0)}


def where(condition: str, prefix: str) -> tuple[str, dict[str, Any]]:
    """The condition over `exchanges e`, and its parameters (each begins with `prefix`). Raises LlmtapError for what is none."""
    name, compare, value = _parsed(condition)
    column = "value" if isinstance(value, float) else "string_value"
    sql = (
        f"EXISTS (SELECT 1 FROM ratings r WHERE r.exchange_id = e.id AND r.name = :{prefix}n AND r.{column} {compare} :{prefix}v)"
    )
    return sql, {f"{prefix}n": name, f"{prefix}v": value}


def _parsed(condition: str) -> tuple[str, str, float | str]:
    if condition in _THUMBS:
        return _THUMBS[condition]
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise LlmtapError(f"{condition!r} is no condition on a rating: give up, down, NAME>=NUMBER or NAME=WORD")
    name, compare, text = found.groups()
    try:
        return name, compare, float(text)
    except ValueError:
        if compare not in ("=", "!="):
            raise LlmtapError(f"{condition!r}: words compare by = and != only") from None
        return name, compare, text
