"""Who is recorded how: rules in their order, a sample that holds, and wishes that only make it less."""

from __future__ import annotations

from typing import Any

import pytest

from llmtap.core.config import Capture
from llmtap.policy.capturing import CaptureRules, Mode


def rules(**capture: Any) -> CaptureRules:
    return CaptureRules(Capture.model_validate(capture))


def test_without_rules_everything_is_recorded_but_what_asks_not_to_be() -> None:
    it = rules()
    assert it.trivial
    assert it.mode(None, None, None, "x") == "full"
    assert it.mode("off", "k", "m", "x") == "off"
    assert it.mode("metadata", "k", "m", "x") == "metadata"
    assert rules(opt_out=False).mode("off", "k", "m", "x") == "full"


def test_the_first_rule_that_fits() -> None:
    it = rules(
        rules=[
            {"key": "legal-*", "capture": "off"},
            {"model": "*-secret", "capture": "metadata"},
            {"key": "ci", "model": "big*", "sample": 0},
            {"key": "ci"},
        ],
        sample=0,
    )
    assert not it.trivial
    cases: list[tuple[str | None, str | None, Mode]] = [
        ("legal-eu", "big", "off"),
        ("legal-eu", "x-secret", "off"),
        (None, "x-secret", "metadata"),
        ("ci", "big-1", "metadata"),
        ("ci", "small", "metadata"),
        (None, None, "metadata"),
    ]
    for key, model, mode in cases:
        assert it.mode(None, key, model, "x") == mode, (key, model)
    assert rules(rules=[{"key": "ci", "sample": 1}], sample=0).mode(None, "ci", "m", "x") == "full"


@pytest.mark.parametrize(
    ("rule", "wish", "mode"), [("full", "off", "off"), ("metadata", "full", "metadata"), ("off", "full", "off")]
)
def test_a_wish_makes_it_less_never_more(rule: str, wish: Mode, mode: Mode) -> None:
    assert rules(rules=[{"capture": rule}]).mode(wish, "k", "m", "x") == mode


def test_a_sample_is_a_share_and_stays_what_it_was() -> None:
    it = rules(sample=0.25)
    found = [it.mode(None, "k", "m", f"session-{n}") for n in range(4000)]
    assert set(found) == {"full", "metadata"}
    assert 800 < found.count("full") < 1200
    assert found == [it.mode(None, "k", "m", f"session-{n}") for n in range(4000)]
    assert {rules(sample=0).mode(None, None, None, str(n)) for n in range(100)} == {"metadata"}
