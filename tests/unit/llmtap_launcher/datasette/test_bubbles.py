from __future__ import annotations

import html.parser
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.datasette import bubbles
from llmtap_launcher.datasette.conversation import Message

#: all the tags a bubble is made of
TAGS = {"article", "header", "span", "div", "pre", "p", "a", "details", "summary", "b"}


class Tags(html.parser.HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.depth = 0
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def bubble(role: str, text: str | None = None, extra: dict[str, Any] | None = None, **fields: Any) -> str:
    return str(bubbles.bubble(Message(1, role, text, len(text or ""), extra, **fields), "/capture/bodies/1"))


HOSTILE = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</pre></details>",
        '" onload="x',
        "<svg onload=x>",
        "{}",
        "{0}",
        "&lt;",
    ]
) | st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | HOSTILE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "content", "image_url", "url", "name", "thinking", "function", "arguments", "id", "input"]
            )
            | HOSTILE,
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    HOSTILE,
    st.none() | HOSTILE,
    st.none() | st.dictionaries(st.sampled_from(["content", "tool_calls", "reasoning", "refusal", "name", "tool_call_id"]), JSON),
)
def test_whatever_was_captured_only_our_own_tags_come_out_and_all_are_closed(
    role: str, text: str | None, extra: dict[str, Any] | None
) -> None:
    seen = Tags(bubble(role, text, extra))
    assert set(seen.tags) <= TAGS
    assert seen.depth == 0
    assert {name for name, _ in seen.attributes} <= {"class", "href", "title", "dir"}
    assert {value for name, value in seen.attributes if name == "href"} <= {"/capture/bodies/1"}


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_each_role_has_its_own_look(role: str) -> None:
    assert f'class="msg role-{role}"' in bubble(role, "hello")


def test_an_unknown_role_is_named_but_makes_no_class() -> None:
    shown = bubble('x" onload="y', "hello")
    assert 'class="msg role-other"' in shown and "x&#34; onload=&#34;y" in shown


def test_fenced_code_gets_a_box_and_the_rest_stays_prose() -> None:
    shown = str(bubbles.prose("before\n```python\nprint('<b>')\n```\nafter **bold**"))
    assert shown == (
        '<div class="text" dir="auto">before</div><div class="code"><span class="lang">python</span>'
        '<pre>print(&#39;&lt;b&gt;&#39;)</pre></div><div class="text" dir="auto">after **bold**</div>'
    )


def test_an_unclosed_fence_is_prose() -> None:
    assert str(bubbles.prose("```python\nprint(1)")).count("<pre>") == 0


def test_tool_calls_show_their_arguments_indented() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city":"Paris"}'}}]
    shown = bubble("assistant", None, {"tool_calls": calls})
    assert "<b>f</b>" in shown and "c1" in shown
    assert "{\n  &#34;city&#34;: &#34;Paris&#34;\n}" in shown
    assert "(empty)" not in shown


def test_arguments_that_broke_off_are_shown_as_they_are() -> None:
    shown = bubble("assistant", None, {"tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Par'}}]})
    assert "{&#34;city&#34;: &#34;Par" in shown


def test_reasoning_is_folded_and_apart_from_the_reply() -> None:
    shown = bubble("assistant", "Yes.", {"reasoning": "Let me think."})
    fold, _, reply = shown.partition("</details>")
    assert '<details class="reasoning"><summary>Reasoning (13 characters)</summary>' in fold and "Let me think." in fold
    assert "Yes." in reply and "Let me think." not in reply


def test_a_picture_is_named_and_never_loaded() -> None:
    data = "data:image/png;base64," + "A" * 5000
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image_url", "image_url": {"url": "https://pictures.example/cat.png"}},
    ]
    shown = bubble("user", "what is this?", {"content": parts})
    assert "image/png, 5.0 kB, inline" in shown and "https://pictures.example/cat.png" in shown
    assert "AAAA" not in shown and "<img" not in shown and "src=" not in shown and 'href="https' not in shown


def test_long_strings_of_unknown_parts_are_cut() -> None:
    shown = bubble("user", None, {"content": [{"type": "input_audio", "input_audio": {"data": "B" * 9000, "format": "wav"}}]})
    assert "input_audio" in shown and "(9,000 characters)" in shown and len(shown) < 1500


def test_a_tool_result_that_is_json_is_indented() -> None:
    assert "{\n  &#34;t&#34;: 7\n}" in bubble("tool", '{"t":7}', {"tool_call_id": "c1"})
    assert "plain words" in bubble("tool", "plain words")


@pytest.mark.parametrize(("role", "folded"), [("system", True), ("tool", True), ("user", False), ("assistant", False)])
def test_long_system_prompts_and_tool_results_are_folded(role: str, folded: bool) -> None:
    assert ('<details class="long">' in bubble(role, "word " * 500)) is folded


def test_a_cut_text_says_how_much_is_missing_and_links_to_all_of_it() -> None:
    shown = str(bubbles.bubble(Message(9, "user", "abc", 60_003, None), "/capture/bodies/9"))
    assert '<a href="/capture/bodies/9">… 60,000 more characters, show all</a>' in shown


def test_nothing_said_is_said_so() -> None:
    assert "(empty)" in bubble("assistant", "")
    assert "(empty)" in bubble("assistant", None, {"reasoning": None, "tool_calls": []})


def test_several_choices_are_numbered_and_the_reply_is_marked() -> None:
    shown = bubble("assistant", "b", choice=1, reply=True)
    assert "choice 1" in shown and 'class="msg role-assistant reply"' in shown


@given(JSON)
def test_pretty_json_is_the_same_json(value: Any) -> None:
    try:
        expected = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        assert bubbles.pretty(value) == value
        return
    assert json.loads(bubbles.pretty(value)) == expected
