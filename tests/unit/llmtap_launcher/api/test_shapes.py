"""Bodies of the management API."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmtap.core.config import Backend
from llmtap_launcher.api.shapes import Up, row
from llmtap_launcher.members import Member


@pytest.mark.parametrize("model", ["", " ", "-x", "--model", "a\x00b", "m" * 1025])
def test_a_model_cannot_be_an_option(model: str) -> None:
    with pytest.raises(ValidationError):
        Up(model=model)


def test_a_row_of_a_backend_nobody_has_looked_at() -> None:
    shown = row(Member(Backend(name="a", url="http://127.0.0.1:1", models=("m",), api_key="sk-secret")), None)
    assert (shown.health, shown.process, shown.models, shown.pid) == (None, "remote", ["m"], None)
    assert "sk-secret" not in shown.model_dump_json()


def test_what_the_gateway_sees_counts() -> None:
    seen = {"state": "up", "reason": "", "in_flight": 3, "models": ["x"]}
    shown = row(Member(Backend(name="a", url="http://127.0.0.1:1")), seen)
    assert (shown.health, shown.reason, shown.in_flight, shown.models) == ("up", None, 3, ["x"])
