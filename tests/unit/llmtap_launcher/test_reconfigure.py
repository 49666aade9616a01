"""What of a changed file is taken over while `llmtap up` runs."""

from __future__ import annotations

from typing import Any

from llmtap.core.config import Config
from llmtap_launcher.reconfigure import taken_over, waits_for_restart


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def test_what_can_change_does_and_the_rest_stays() -> None:
    running = config(server={"port": 9000, "max_body_mb": 1}, capture={"segment_mb": 5})
    fresh = config(
        server={"port": 9001, "max_body_mb": 2}, capture={"segment_mb": 6}, routing={"retries": 1}, timeouts={"idle_s": 7}
    )
    now = taken_over(running, fresh)
    assert (now.server.port, now.server.max_body_mb) == (9000, 2)
    assert (now.capture.segment_mb, now.routing.retries, now.timeouts.idle_s) == (5, 1, 7)


def test_what_waits_for_a_restart_is_named() -> None:
    fresh = config(server={"port": 9001, "max_body_mb": 2}, capture={"segment_mb": 6}, timeouts={"idle_s": 7})
    assert waits_for_restart(config(), fresh) == ["server.port", "capture"]
    assert waits_for_restart(fresh, fresh) == []
