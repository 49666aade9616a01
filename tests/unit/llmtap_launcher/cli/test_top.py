from __future__ import annotations

import io
import json
from typing import Any

from click.testing import CliRunner
from rich.console import Console

from llmtap.metrics import MetricsRecorder
from llmtap_launcher.cli import cli
from llmtap_launcher.cli.top import picture, report
from support.snapshots import serving


def snapshots() -> tuple[dict[str, Any], dict[str, Any]]:
    """Before and after a request."""
    recorder = MetricsRecorder(model="m", backend="a")
    recorder.finalize_request(generation_tokens=100)
    recorder.finalize_request(outcome="timeout", status=504, model="quiet")
    recorder.observe_time_to_first_token(0.5, model="quiet")
    before = recorder.snapshot()
    recorder.finalize_request(generation_tokens=50)
    recorder.observe_time_to_first_token(0.03)
    recorder.increment_running()
    recorder.increment_waiting()
    return before, recorder.snapshot()


def shown(found: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(picture(found))
    return "\n".join(" ".join(line.split()) for line in out.getvalue().splitlines())


def test_a_look() -> None:
    before, now = snapshots()
    found = report(now, before, 2.0)
    assert (found["running"], found["waiting"], found["spool_lag_s"]) == (1, 1, None)
    one = next(row for row in found["models"] if row["model"] == "m" and row["backend"] == "a")
    assert (one["requests"], one["running"], one["generation_tokens"]) == (2, 1, 150)
    assert one["recent"]["tokens_per_s"] == 25 and one["recent"]["requests"] == 1
    quiet = next(row for row in found["models"] if row["model"] == "quiet")
    assert quiet["errors"] == 1 and quiet["recent"]["errors"] == 0
    text = shown({"url": "http://g/internal/metrics", **found, "backends": {"a": True, "b": False}, "spool_lag_s": 12.5})
    assert text.startswith("http://g running 1 waiting 1 spool lag 12.5 s backends 1 up, down: b")
    assert "m a 1 0 0.5 25 30 ms 39 ms 0 2" in text
    assert "quiet a 0 0 0.0 0 (500 ms) (" not in text and "(375 ms)" in text  # since the start: nothing new


def test_the_first_look_has_no_rates() -> None:
    _, now = snapshots()
    assert report(now, None, None)["models"][0]["recent"]["tokens_per_s"] == 0
    assert "no requests yet" in shown({"url": "u", **report({}, None, None)})


def test_once() -> None:
    with serving(list(snapshots())) as url:
        result = CliRunner().invoke(cli, ["top", url, "--once", "--interval", "0.1"])
        assert result.exit_code == 0, result.output
        assert "TTFT p50" in result.output and "quiet" in result.output
    with serving(list(snapshots())) as url:
        result = CliRunner().invoke(cli, ["top", url, "--once", "--json", "--interval", "0.1"])
        found = json.loads(result.output)
        one = next(row for row in found["models"] if row["model"] == "m" and row["backend"] == "a")
        assert one["recent"]["requests"] == 1 and 0 < one["recent"]["tokens_per_s"] <= 500
        assert found["url"] == f"{url}/internal/metrics"


def test_mistakes_are_one_line() -> None:
    with serving([None]) as url:
        result = CliRunner().invoke(cli, ["top", url, "--once"])
    assert result.exit_code == 1 and result.output == f"Error: {url}/internal/metrics answers 500\n"
    assert CliRunner().invoke(cli, ["top", "--interval", "0"]).exit_code == 2
