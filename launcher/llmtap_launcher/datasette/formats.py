"""How numbers, times and sizes are shown to a reader. Pure; the database and the JSON/CSV outputs keep the raw values."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def duration(ms: float) -> str:
    """Milliseconds as a reader says them: `0.84 ms`, `245 ms`, `1.53 s`, `2 min 05 s`, `1 h 02 min`."""
    sign, ms = ("-", -ms) if ms < 0 else ("", ms)
    if ms < 9.995:
        return f"{sign}{ms:.2f} ms"
    if ms < 999.5:
        return f"{sign}{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 9.995:
        return f"{sign}{seconds:.2f} s"
    if seconds < 59.95:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{sign}{minutes // 60:,} h {minutes % 60:02d} min"


def number(value: float) -> str:
    """Thousands separated; a fraction only where it tells something: `12,345`, `35.2`."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}"


def size(n: float) -> str:
    """Bytes in decimal units: `512 B`, `10.7 kB`, `3.2 MB`."""
    if n < 1000:
        return f"{n:.0f} B"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 999.95:
            return f"{n:.1f} {unit}"
    return f"{n / 1000:,.1f} TB"


def when(iso: str) -> str:
    """An ISO 8601 time as `2025-11-21 01:36:12`, in UTC; what is no time comes back as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    if at.tzinfo is not None:
        at = at.astimezone(UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S")


def dollars(value: float) -> str:
    """`$0.0031`, `$1.25`, `$1,234`."""
    if value >= 1000:
        return f"${value:,.0f}"
    if value >= 1 or value <= 0:
        return f"${value:.2f}"
    digits = min(9, 2 - math.floor(math.log10(value)))  # three that tell something
    return f"${value:.{digits}f}".rstrip("0").rstrip(".")
