"""A route is plain data."""

from __future__ import annotations

from llmtap.policy.route import Route


def test_routes_share_nothing() -> None:
    one, other = Route("any", "m"), Route("any", "m")
    one.tried.append(None)  # type: ignore[arg-type]
    assert other.tried == [] and one != other and other.idempotent and other.only is None
