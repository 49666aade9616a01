"""Which protections a configuration has, and what a reload leaves standing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmtap.core.config import Config
from llmtap.metrics import GatewayMetrics
from llmtap.policies import Policies
from llmtap.policy.backends import Backends

KEY = {"name": "a", "key": "secret-a"}


@pytest.fixture
def metrics() -> GatewayMetrics:
    return GatewayMetrics(CollectorRegistry(), 1000, lambda model: True)


def policies(metrics: GatewayMetrics, before: Policies | None = None, **config: Any) -> Policies:
    return Policies(Config.model_validate(config), metrics, Backends([]), None, before)


def test_all_is_off_by_default(metrics: GatewayMetrics) -> None:
    off = policies(metrics)
    assert off.auth is off.cors is off.limits is None
    assert off.before_routing == off.after_routing == []
    assert [step.name for step in off.after_tee] == ["costs"]
    assert Policies(Config.model_validate({"metrics": {"enabled": False}}), metrics, Backends([])).after_tee == []
    off.start()
    off.stop()


def test_what_is_on_and_in_which_order(metrics: GatewayMetrics) -> None:
    sections = {name: {"enabled": True} for name in ("rate_limit", "cache")}
    assert policies(metrics, auth={"enabled": True, "keys": [KEY]}).before_routing == []  # a key that may do anything
    limited = {"name": "b", "key": "secret-b", "max_concurrency": 2}
    on = policies(metrics, auth={"enabled": True, "keys": [KEY, limited]}, server={"cors_origins": ["*"]}, **sections)
    assert [step.name for step in on.before_routing] == ["auth"]
    assert [step.name for step in on.after_routing] == ["limits", "cache"]
    assert [step.name for step in on.after_tee] == ["costs", "cache_fill"]
    assert on.cors is not None


async def test_budgets_of_keys(metrics: GatewayMetrics, tmp_path: Path) -> None:
    def spending(*keys: dict[str, Any], before: Policies | None = None) -> Policies:
        return policies(metrics, before, auth={"enabled": True, "keys": keys}, capture={"dir": str(tmp_path)})

    rich = KEY | {"budget_usd": 5}
    assert spending(KEY).budgets is None
    old = spending(rich)
    assert [step.name for step in old.after_routing] == ["budgets"]
    old.start()
    assert old.budgets is not None and old.budgets._task is not None
    new = spending(rich | {"budget_usd": 6}, before=old)
    assert new.budgets is old.budgets
    new.start()
    task = old.budgets._task
    without = spending(KEY, before=new)
    without.start()
    assert without.budgets is None and old.budgets._task is None
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_reload_goes_on_counting_and_is_told_only_when_it_is_in_force(metrics: GatewayMetrics) -> None:
    old = policies(metrics, auth={"enabled": True, "keys": [KEY]}, rate_limit={"enabled": True})
    new = policies(
        metrics,
        old,
        auth={"enabled": True, "keys": [{"name": "b", "key": "secret-b"}]},
        rate_limit={"enabled": True, "default_limit": 7},
    )
    assert new.auth is old.auth and new.limits is old.limits and old.auth is not None and old.limits is not None
    assert old.auth._keyring.find(b"secret-a") is not None and old.limits._default == 60
    new.start()
    assert old.auth._keyring.find(b"secret-a") is None and old.auth._keyring.find(b"secret-b") is not None
    assert old.limits._default == 7


def test_a_reload_keeps_answers(metrics: GatewayMetrics) -> None:
    old = policies(metrics, cache={"enabled": True})
    new = policies(metrics, old, cache={"enabled": True, "max_entries": 5})
    assert new.cache is old.cache is not None
    new.start()
    assert policies(metrics, new).cache is None


def test_another_storage_is_another_count(metrics: GatewayMetrics) -> None:
    pytest.importorskip("hiredis")
    old = policies(metrics, rate_limit={"enabled": True})
    new = policies(metrics, old, rate_limit={"enabled": True, "storage": "redis://127.0.0.1:1/0"})
    assert new.limits is not old.limits
    third = policies(metrics, new, rate_limit={"enabled": True, "storage": "redis://127.0.0.1:1/0"})
    assert third.limits is new.limits and third._redis == new._redis
    third.stop()
