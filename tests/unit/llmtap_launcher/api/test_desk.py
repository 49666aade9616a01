"""The error that every route answers with."""

from __future__ import annotations

import pytest

from llmtap_launcher.api.desk import Declined


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "not_found_error"), (409, "invalid_request_error"), (503, "service_unavailable_error"), (500, "api_error")],
)
def test_its_type_follows_from_the_status(status: int, kind: str) -> None:
    declined = Declined(status, "c", "m", param="p", log=["a"])
    assert declined.problem.model_dump() == {"message": "m", "type": kind, "param": "p", "code": "c", "log": ["a"]}
