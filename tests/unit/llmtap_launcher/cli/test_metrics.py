from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from llmtap.metrics import MetricsRecorder
from llmtap_launcher.cli import cli
from llmtap_launcher.cli.metrics import duration, labels_text, number
from llmtap_launcher.ports import free_ports
from support.snapshots import serving


@pytest.fixture
def recorder() -> MetricsRecorder:
    recorder = MetricsRecorder(model="m", backend="a")
    for _ in range(1234):
        recorder.finalize_request(prompt_tokens=3, e2e_seconds=0.4)
    recorder.observe_time_to_first_token(0.03)
    recorder.increment_running()
    return recorder


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_all_kinds(recorder: MetricsRecorder) -> None:
    with serving([recorder.snapshot()]) as url:
        result = CliRunner().invoke(cli, ["metrics", url])
    assert result.exit_code == 0, result.output
    shown = lines(result.output)
    where = "endpoint=chat model=m backend=a key=anonymous"
    assert f"llmtap_requests_total {where} outcome=ok status=200 1,234" in shown
    assert "llmtap_requests_running 1" in shown
    assert f"llmtap_time_to_first_token_seconds {where} 1 30 ms 30 ms 39 ms 39.8 ms" in shown
    assert f"llmtap_request_prompt_tokens {where} 1,234 3 3.5 4.85 4.97" in shown


def test_some_of_them(recorder: MetricsRecorder) -> None:
    with serving([recorder.snapshot()]) as url:
        result = CliRunner().invoke(cli, ["metrics", url, "--match", "llmtap_requests_*"])
        assert "llmtap_requests_running" in result.output and "tokens" not in result.output
        result = CliRunner().invoke(cli, ["metrics", url, "--match", "nothing"])
        assert (result.exit_code, result.output) == (1, "Error: no metric fits nothing\n")


def test_json(recorder: MetricsRecorder) -> None:
    with serving([recorder.snapshot()]) as url:
        result = CliRunner().invoke(cli, ["metrics", url, "--json", "--match", "requests_running"])
    assert set(json.loads(result.output)) == {"llmtap_requests_running", "llmtap_backend_requests_running"}


def test_nobody_there() -> None:
    result = CliRunner().invoke(cli, ["metrics", f"127.0.0.1:{free_ports(1)[0]}"])
    assert result.exit_code == 1 and result.output.startswith("Error: no gateway answers at http://127.0.0.1:")
    assert result.output.count("\n") == 1


def test_words() -> None:
    assert [duration(s) for s in (0.00005, 0.0123, 1.5, 90)] == ["50 us", "12.3 ms", "1.5 s", "90 s"]
    assert [number(n) for n in (3, 1234567.0, 0.12345)] == ["3", "1,234,567", "0.1235"]
    assert labels_text({"a": "x\x1b[2J"}) == "a=x\N{REPLACEMENT CHARACTER}[2J"
