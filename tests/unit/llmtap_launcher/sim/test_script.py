from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.sim import script, text
from llmtap_launcher.sim.script import Call, Plan, Step

TOKENIZER = text.Tokenizer()


def write(plan: Plan, seed: object = 0) -> list[Step]:
    return script.write(TOKENIZER, text.rng(seed), plan)


def said(steps: list[Step], channel: str = "content") -> str:
    return "".join(s.delta for s in steps if s.channel == channel)


def test_an_answer_ends_with_the_end_of_sequence_token() -> None:
    steps = write(Plan(max_tokens=1000))
    assert [s.finish for s in steps[:-1]] == [None] * (len(steps) - 1)
    assert (steps[-1].token, steps[-1].finish, steps[-1].delta) == (text.EOS, "stop", "")
    assert 21 <= len(steps) <= 121


def test_max_tokens_cuts_on_a_token_with_text() -> None:
    steps = write(Plan(max_tokens=5))
    assert len(steps) == 5
    assert steps[-1].finish == "length"
    assert steps[-1].delta


def test_a_wanted_length_counts_the_end_of_sequence() -> None:
    steps = write(Plan(max_tokens=1000, length=300))
    assert len(steps) == 300
    assert steps[-1].finish == "stop"


def test_a_wanted_length_counts_thinking_too() -> None:
    assert len(write(Plan(max_tokens=1000, length=300, thinking=True))) == 300


def test_ignoring_the_end_goes_on_to_max_tokens() -> None:
    steps = write(Plan(max_tokens=400, ignore_eos=True))
    assert len(steps) == 400
    assert steps[-1].finish == "length"
    assert text.EOS not in [s.token for s in steps]


def test_min_tokens() -> None:
    assert len(write(Plan(max_tokens=1000, min_tokens=500))) > 500


def test_thinking_comes_before_the_answer_between_control_tokens() -> None:
    steps = write(Plan(max_tokens=1000, thinking=True))
    channels = [s.channel for s in steps]
    assert TOKENIZER.token_text(steps[0].token) == "<think>"
    end = next(n for n, s in enumerate(steps) if TOKENIZER.token_text(s.token) == "</think>")
    assert set(channels[1:end]) == {"reasoning"}
    assert set(channels[end + 1 : -1]) == {"content"}
    assert said(steps).startswith("\n\n")


def test_calls_are_a_name_and_the_fragments_of_their_arguments() -> None:
    calls = (Call("get_weather", '{"city": "Paris"}'), Call("f", "{}"))
    steps = write(Plan(max_tokens=1000, calls=calls))
    names = [s for s in steps if s.channel == "tool_name"]
    assert [(s.call, s.delta) for s in names] == [(0, "get_weather"), (1, "f")]
    arguments = ["".join(s.delta for s in steps if s.channel == "tool_args" and s.call == n) for n in (0, 1)]
    assert [json.loads(a) for a in arguments] == [{"city": "Paris"}, {}]
    assert sum(s.channel == "tool_args" and s.call == 0 for s in steps) > 2
    # the markup is generated as well, and counted
    assert TOKENIZER.decode([s.token for s in steps]).startswith('<tool_call>\n{"name": "get_weather", "arguments": {"city"')
    assert said(steps) == ""


def test_a_fixed_text_is_said_as_it_is() -> None:
    assert said(write(Plan(max_tokens=100, fixed_text='{"a": "Malmö"}'))) == '{"a": "Malmö"}'


def test_a_stop_string_ends_the_text_before_it() -> None:
    whole = said(write(Plan(max_tokens=1000)))
    stop = whole[40:47]
    steps = write(Plan(max_tokens=1000, stop=("never said", stop)))
    assert said(steps) == whole[: whole.index(stop)]
    assert (steps[-1].finish, steps[-1].stop_reason) == ("stop", stop)


def test_a_stop_string_may_be_kept() -> None:
    whole = said(write(Plan(max_tokens=1000)))
    stop = whole[40:47]
    steps = write(Plan(max_tokens=1000, stop=(stop,), include_stop=True))
    assert said(steps) == whole[: whole.index(stop) + len(stop)]


def test_text_that_may_begin_a_stop_string_is_held_back_and_given_at_the_end() -> None:
    plain = write(Plan(max_tokens=1000))
    steps = write(Plan(max_tokens=1000, stop=("0123456789",)))
    assert said(steps) == said(plain)
    assert len(steps) == len(plain)
    assert steps[-1].delta and steps[0].delta == ""
    assert steps[-1].stop_reason is None


def test_held_back_text_is_given_when_the_length_ends_it() -> None:
    steps = write(Plan(max_tokens=12, stop=("0123456789",)))
    assert said(steps) == said(write(Plan(max_tokens=12)))
    assert steps[-1].finish == "length"


@given(
    st.integers(1, 60), st.booleans(), st.booleans(), st.lists(st.sampled_from(["the", ".", " a", "e", "zz", "\n"]), max_size=3)
)
def test_any_plan_gives_a_script_with_one_end(max_tokens: int, thinking: bool, ignore_eos: bool, stop: list[str]) -> None:
    plan = Plan(max_tokens=max_tokens, thinking=thinking, ignore_eos=ignore_eos, stop=tuple(stop))
    steps = write(plan, seed=max_tokens)
    assert 1 <= len(steps) <= max_tokens
    assert [bool(s.finish) for s in steps] == [False] * (len(steps) - 1) + [True]
    whole = said(write(replace(plan, stop=()), seed=max_tokens))
    assert whole.startswith(said(steps))
    assert not any(s in said(steps) for s in stop)


@pytest.mark.parametrize("choice", [1, 2, 3])
def test_choices_differ(choice: int) -> None:
    assert said(write(Plan(max_tokens=100), choice)) != said(write(Plan(max_tokens=100)))
