from __future__ import annotations

import pytest

from llmtap_launcher.sim.errors import VllmError
from llmtap_launcher.sim.requests import Message, Tool
from llmtap_launcher.sim.template import render


def test_turns_in_chatml() -> None:
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="Hi")]
    assert render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not render(messages, generation_prompt=False).endswith("assistant\n")


def test_tools_go_into_the_one_system_turn() -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
    text = render([Message(role="system", content="Be brief."), Message(role="user", content="Hi")], [tool])
    assert text.count("<|im_start|>system") == 1
    assert '{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}' in text
    assert text.index("Be brief.") < text.index("# Tools")
    assert "# Tools" in render([Message(role="user", content="Hi")], [tool])


def test_earlier_calls_are_part_of_the_prompt() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert '"name": "f"' in render([Message(role="assistant", tool_calls=[call])])


def test_no_messages() -> None:
    with pytest.raises(VllmError, match="Cannot apply chat template to an empty conversation"):
        render([])
