"""What is asked for when nobody says anything."""

from __future__ import annotations

from llmtap_launcher.export.options import CHATS, FINISHED, Drawn, Shape, Wanted


def test_defaults_are_whole_replies_of_chats() -> None:
    wanted = Wanted()
    assert wanted.outcomes == ("ok", "cached")
    assert {"stop", "tool_calls"} <= set(wanted.finish_reasons) == set(FINISHED)
    assert "length" not in FINISHED and "completions" not in CHATS
    assert (Shape().reasoning, Shape().images, Shape().tool_args) == ("drop", "data", "string")
    assert (Drawn().sample, Drawn().validation, Drawn().limit) == (1.0, 0.0, None)
