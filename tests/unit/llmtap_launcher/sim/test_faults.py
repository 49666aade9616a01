from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.sim import faults
from llmtap_launcher.sim.faults import Directives, Fault, FaultError, Rule, Rules
from llmtap_launcher.sim.text import rng


def test_every_kind_is_described() -> None:
    assert tuple(faults.DESCRIPTIONS) == faults.KINDS


@pytest.mark.parametrize("kind", faults.KINDS)
def test_every_kind_parses(kind: str) -> None:
    assert faults.parse_fault(kind).kind == kind
    assert faults.parse_fault(f"{kind}=3") == Fault(kind, 3.0)


def test_defaults_of_arguments() -> None:
    assert faults.parse_fault("die_mid_stream").after_tokens == 5
    assert faults.parse_fault("die_mid_stream=12").after_tokens == 12
    assert faults.parse_fault("stall=12").after_tokens == faults.TOKENS_BEFORE
    assert faults.parse_fault("slow_headers").seconds == 5
    assert faults.parse_fault("stall").seconds == float("inf")
    assert faults.parse_fault("stall=0.5").seconds == 0.5


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("stall", Rule(Fault("stall"))),
        ("stall=2:3", Rule(Fault("stall", 2), times=3)),
        ("http_500:0.25", Rule(Fault("http_500"), probability=0.25)),
        ("http_500:1.0", Rule(Fault("http_500"), probability=1.0)),
        ("http_500:1", Rule(Fault("http_500"), times=1)),
    ],
)
def test_rules(spec: str, rule: Rule) -> None:
    assert faults.parse_rule(spec) == rule


@pytest.mark.parametrize(
    "spec", ["", "nope", "stall=x", "stall=-1", "stall=nan", "stall:x", "stall:0", "stall:1.5", "stall:-1", "stall:"]
)
def test_wrong_rules_say_what_would_be_right(spec: str) -> None:
    with pytest.raises(FaultError, match=r"there are|expected|comes a count|a probability is"):
        faults.parse_rule(spec)


def test_a_counted_rule_is_used_up() -> None:
    rules = Rules([faults.parse_rule("http_500:2")], rng(0))
    struck = [rules.strike("/v1/chat/completions", True) for _ in range(4)]
    assert struck == [Fault("http_500"), Fault("http_500"), None, None]
    assert rules.list() == []


def test_a_probability_holds_roughly_and_repeats() -> None:
    def struck() -> list[bool]:
        rules = Rules([faults.parse_rule("http_500:0.3")], rng(0))
        return [rules.strike("/v1/completions", True) is not None for _ in range(1000)]

    assert 230 < sum(struck()) < 370
    assert struck() == struck()


def test_rules_are_for_inference_unless_they_name_a_path() -> None:
    rules = Rules([faults.parse_rule("http_500")], rng(0))
    assert rules.strike("/health", False) is None
    rules.add(Rule(Fault("stall"), path="/health"))
    assert rules.strike("/health", False) == Fault("stall")
    assert rules.strike("/v1/models", False) is None
    assert rules.strike("/v1/completions", True) == Fault("http_500")


def test_the_latest_rule_comes_first_and_clearing_ends_all() -> None:
    rules = Rules([faults.parse_rule("http_500")], rng(0))
    rules.add(faults.parse_rule("http_503:1"))
    kinds = [f.kind for _ in range(2) if (f := rules.strike("/v1/completions", True))]
    assert kinds == ["http_503", "http_500"]
    rules.clear()
    assert rules.strike("/v1/completions", True) is None


def test_directives_in_a_body() -> None:
    body = b'{"content": "[[sim:tps=50]] [[sim:ttft=200]][[sim:tokens=300]] [[sim:fail=stall=2]] hi"}'
    assert faults.read_directives(body, None) == Directives(Fault("stall", 2), 50, 200, 300)


def test_the_body_wins_over_the_header() -> None:
    assert faults.read_directives(b"[[sim:fail=stall]]", "http_500").fault == Fault("stall")
    assert faults.read_directives(b"{}", "http_500").fault == Fault("http_500")
    assert faults.read_directives(b"{}", None) == Directives()


@pytest.mark.parametrize(
    "body", [b"[[sim:tps=x]]", b"[[sim:tps=-1]]", b"[[sim:tokens=1e99]]", b"[[sim:nope=1]]", b"[[sim:fail=nope]]"]
)
def test_wrong_directives(body: bytes) -> None:
    with pytest.raises(FaultError):
        faults.read_directives(body, None)


@given(st.binary())
def test_any_body_is_read_or_refused(body: bytes) -> None:
    for sample in (body, b"[[sim:" + body + b"]]"):
        try:
            faults.read_directives(sample, None)
        except FaultError as error:
            assert str(error)


def test_directives_are_not_heard_by_the_model() -> None:
    assert faults.strip_directives("[[sim:tps=50]] Hello [[sim:fail=stall]]there") == "Hello there"
    assert faults.strip_directives("[[other]]") == "[[other]]"
