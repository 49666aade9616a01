"""A plan is plain data with safe defaults."""

from __future__ import annotations

from llmtap.core.plan import Plan, Target


def test_a_target_never_shows_its_key_as_part_of_the_plan() -> None:
    target = Target("a", "127.0.0.1", 1, headers=((b"authorization", b"Bearer secret"),))
    assert "secret" not in repr(target)
    assert "secret" not in repr(Plan([target]))


def test_defaults_are_those_of_the_configuration() -> None:
    plan = Plan([])
    assert (plan.retries, plan.connect_s, plan.first_byte_s, plan.idle_s, plan.total_s) == (2, 5.0, 600.0, 600.0, 3600.0)
    assert plan.on_client_disconnect == "abort" and plan.attempts == 0 and plan.served_by is None
