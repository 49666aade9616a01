"""What is decided of a backend whose configuration leaves it open."""

from __future__ import annotations

from typing import Any

import pytest

from llmtap.core.config import Backend
from llmtap_launcher.settle import settled


def backend(url: str | None = None, **launch: Any) -> Backend:
    return Backend.model_validate({"name": "a", "url": url, "launch": {"model": "org/m", **launch}})


def test_a_port_is_taken_only_where_none_is_given() -> None:
    assert settled(backend(), lambda: 9123).url == "http://127.0.0.1:9123"
    given = backend("http://127.0.0.1:81")
    assert settled(given, lambda: 9123) is given


@pytest.mark.parametrize("key", [{"ttl_s": 5}, {"group": "gpu"}])
def test_models_of_one_that_may_be_stopped_are_known_before_it_runs(key: dict[str, Any]) -> None:
    assert settled(backend(**key), lambda: 1).models == ("org/m",)
    assert settled(backend(**key, args={"served_model_name": ["x", "y"]}), lambda: 1).models == ("x", "y")
    assert settled(backend(), lambda: 1).models is None
