from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.record import Choice, ToolCall
from llmtap.wire.merge import Calls, Parts


def fragment(index: int | None = None, id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {key: value for key, value in (("index", index), ("id", id), ("function", function)) if value is not None}


def merge(*fragments: dict[str, Any]) -> list[tuple[str | None, str, str]]:
    calls = Calls()
    for one in fragments:
        calls.add(one)
    built = calls.build()
    assert [call.index for call in built] == list(range(len(built)))
    return [(call.id, call.name, call.arguments) for call in built]


def test_fragments_without_id_follow_their_index() -> None:
    assert merge(
        fragment(0, "a", "f", ""),
        fragment(0, arguments='{"x"'),
        fragment(1, "b", "g", ""),
        fragment(1, arguments="{}"),
        fragment(0, arguments=":1}"),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_parallel_calls_that_all_say_index_zero() -> None:
    assert merge(
        fragment(0, "a", "f", '{"x":'), fragment(0, arguments="1}"), fragment(0, "b", "f", '{"x":'), fragment(0, arguments="2}")
    ) == [("a", "f", '{"x":1}'), ("b", "f", '{"x":2}')]


def test_id_and_name_repeated_on_every_fragment() -> None:
    assert merge(fragment(0, "a", "f", '{"x"'), fragment(0, "a", "f", ":{}"), fragment(0, "a", "f", "}")) == [
        ("a", "f", '{"x":{}}')
    ]
    assert merge(fragment(0, None, "f", '{"x"'), fragment(0, None, "f", ":{}"), fragment(0, None, "f", "}")) == [
        (None, "f", '{"x":{}}')
    ]


def test_calls_without_ids_begin_after_whole_arguments() -> None:
    assert merge(fragment(0, None, "f", "{}"), fragment(0, None, "f", '{"x":1}')) == [(None, "f", "{}"), (None, "f", '{"x":1}')]


def test_fragments_without_index() -> None:
    assert merge(fragment(None, "a", "f", "{"), fragment(arguments="}"), fragment(None, "b", "g", "{}")) == [
        ("a", "f", "{}"),
        ("b", "g", "{}"),
    ]


def test_a_name_in_pieces_and_a_late_id() -> None:
    assert merge(fragment(0, None, "get_"), fragment(0, None, "weather"), fragment(0, "a", None, "{}")) == [
        ("a", "get_weather", "{}")
    ]


def test_whole_calls_are_never_merged() -> None:
    calls = Calls()
    for one in (
        fragment(0, None, "f", ""),
        fragment(0, None, "g", {"x": 1}),
        fragment(None, None, "g", {"x": 1}),
        fragment(0, "a", "h"),
    ):
        assert calls.add(one, whole=True)
    assert [(call.index, call.id, call.name, call.arguments) for call in calls.build()] == [
        (0, None, "f", ""),
        (1, None, "g", '{"x":1}'),
        (2, None, "g", '{"x":1}'),
        (3, "a", "h", ""),
    ]


def test_custom_tools() -> None:
    calls = Calls()
    assert calls.add({"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "free text"}})
    assert calls.build() == [ToolCall(0, "a", "custom", "f", "free text")]


def test_a_fragment_that_says_nothing() -> None:
    assert not Calls().add({"index": 0, "id": "a", "type": "function", "function": {"name": "", "arguments": ""}})


def test_whole_arguments_are_tested_once_for_each_state() -> None:
    calls = Calls()
    calls.add(fragment(0, None, "f", '{"a":{}'))
    call = calls._calls[0]
    call.append("}")
    assert call.whole()
    assert call._tested == len('{"a":{}}')
    assert not call.whole()  # not parsed again before more has come
    call.append("x" * 20_000 + "}")
    assert not call.whole()


def test_parts() -> None:
    parts = Parts(2)
    assert parts.build() == Choice(2)
    assert parts.build(keep_empty=True) == Choice(2, content="")
    parts.content += ["a\ud83d", "\ude80"]
    parts.reasoning.append("r")
    parts.refusal.append("no")
    parts.add_call(fragment(0, "a", "f", "{}"))
    parts.finish_reason = "stop"
    assert parts.build() == Choice(2, "assistant", "a🚀", "r", "no", [ToolCall(0, "a", "function", "f", "{}")], "stop")


odd = st.none() | st.integers(-1, 2) | st.sampled_from(["a", "b", ""]) | st.lists(st.none(), max_size=1) | st.just({"x": 1})


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "index": odd,
                "id": odd,
                "type": odd,
                "function": st.fixed_dictionaries({}, optional={"name": odd, "arguments": odd}) | odd,
            },
        ),
        max_size=6,
    )
)
def test_any_fragments_merge(fragments: list[dict[str, Any]]) -> None:
    calls = Calls()
    for one in fragments:
        calls.add(one)
    assert len(calls.build()) == len(calls) <= len(fragments)
