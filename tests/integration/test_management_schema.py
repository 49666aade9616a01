"""The management API against its own OpenAPI description, by generated requests: no 5xx, no answer it does not describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from llmtap_launcher import guard
from support.launcher import running_up

schemathesis = pytest.importorskip("schemathesis", reason="make venv installs it")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # what it uses, not what we do
]


def test_no_5xx_and_no_schema_violation(tmp_path: Path) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    config = {
        "datasette": {"enabled": False},
        "server": {"drain_timeout_s": 0.5},
        "backends": [{"name": "a", "launch": {"engine": "sim", "model": "m"}}],
    }
    # made-up model names must start no real engine
    env = {"XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with running_up(tmp_path, config=config, env=env) as up:
        schema: Any = schemathesis.openapi.from_url(f"{up.url}/api/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) > 12
        seen: list[str] = []
        for operation in operations:

            @settings(
                max_examples=30,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                case.call_and_validate(checks=checks, timeout=60)

            check()
            seen.append(operation.label)
        assert any("inference/up" in label for label in seen) and up.process.poll() is None
