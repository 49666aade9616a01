"""Several gateways as one."""

from __future__ import annotations

from llmtap_launcher.api.rows import merged


def test_numbers_are_summed_and_no_answer_is_none() -> None:
    def one(n: int) -> dict[str, object]:
        return {"in_flight": n, "waiting": 1, "capture_healthy": True, "backends": [{"name": "a", "in_flight": n, "state": "up"}]}

    assert merged([]) is None
    assert merged([one(2), one(3)]) == {
        "in_flight": 5,
        "waiting": 2,
        "capture_healthy": True,
        "backends": [{"name": "a", "in_flight": 5, "state": "up"}],
    }
