"""The management API against its own OpenAPI description, by generated requests: no 5xx, no answer it does not describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings

from llmtap_launcher import guard
from llmtap_launcher.api import feedback
from llmtap_launcher.api.exchanges import router
from support.captures import Captures
from support.launcher import running_up
from support.size import size

schemathesis = pytest.importorskip("schemathesis", reason="make venv installs it")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # what it uses, not what we do
]


def test_no_5xx_and_no_schema_violation(tmp_path: Path) -> None:
    config = {
        "datasette": {"enabled": False},
        "server": {"drain_timeout_s": 0.5},
        "backends": [{"name": "a", "launch": {"engine": "sim", "model": "m"}}],
    }
    # made-up model names must start no real engine
    env = {"XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with running_up(tmp_path, config=config, env=env) as up:
        schema: Any = schemathesis.openapi.from_url(f"{up.url}/api/openapi.json")
        tried = try_all(schema, lambda path: not path.startswith("/api/v1/exchanges"), timeout=60)
        assert len(tried) > 12 and any("inference/up" in label for label in tried) and up.process.poll() is None


def test_ratings_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # in this process: a request for an exchange that nobody knows waits, in case it has only just ended
    monkeypatch.setattr(feedback, "WAIT_S", 0.0)
    with Captures(tmp_path) as captures:
        uid = captures.exchange([{"role": "user", "content": "hello"}], "hi")
        captures.store()
        routes = feedback.Feedback(captures.folder / "spool", captures.db, feedback.by_gateway)
        app = FastAPI(openapi_url="/openapi.json")
        app.include_router(router(routes), prefix="/api/v1")
        schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app)
        for path in (None, {"uid": uid}):
            assert len(try_all(schema, lambda path: True, path_parameters=path)) == 3
        routes.close()


def try_all(schema: Any, wanted: Callable[[str], bool], path_parameters: dict[str, str] | None = None, **how: Any) -> list[str]:
    """Make requests for every operation whose path is wanted. Their labels."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    tried = []
    for operation in (result.ok() for result in schema.get_all_operations()):
        if not wanted(operation.path):
            continue

        @settings(
            max_examples=size("LLMTAP_SCHEMA_EXAMPLES", 12, 100),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if path_parameters is not None:
                case.path_parameters = path_parameters
            case.call_and_validate(checks=checks, **how)

        check()
        tried.append(operation.label)
    return tried
