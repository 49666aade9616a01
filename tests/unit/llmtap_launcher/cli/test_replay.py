"""`llmtap replay` as a user types it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from support.captures import Captures
from support.command import llmtap


class Server(BaseHTTPRequestHandler):
    seen: list[dict[str, Any]]
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).seen.append(body)
        reply = {"role": "assistant", "content": f"again {body['messages'][-1]['content']}"}
        chunk = {"id": "1", "model": "new", "choices": [{"index": 0, "delta": reply, "finish_reason": "stop"}]}
        good = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        data = good if self.status == 200 else b'{"error": {"message": "no", "type": "bad"}}'
        self.send_response(self.status)
        self.send_header("content-type", "text/event-stream" if self.status == 200 else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"seen": [], "status": 200})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", handler
        http.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmtap.middleware.call._FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv("LLMTAP_KEY", raising=False)
    with Captures(tmp_path / "llmtap-data") as captures:
        for number in range(5):
            captures.exchange(
                [{"role": "user", "content": f"question {number}"}],
                f"answer {number}",
                asked={"temperature": 1, "key_name": "ci" if number < 2 else "production"},
            )
        captures.store()
    return tmp_path


def test_sent_stored_and_compared(folder: Path, server: tuple[str, type[Server]]) -> None:
    url, handler = server
    done = llmtap(
        "replay", "--to", url, "--to-model", "new", "--set", "temperature=0", "--limit", 4, "--run", "try", "--pairs", 1
    )
    assert done.exit_code == 0, done.output
    assert f"run try: 4 requests to {url.removeprefix('http://')} ({url}/v1)" in done.stderr
    assert sorted(body["messages"][0]["content"] for body in handler.seen) == [f"question {n}" for n in range(1, 5)]
    assert {(body["model"], body["temperature"]) for body in handler.seen} == {("new", 0)}
    assert "A as captured (4 requests), B sent again (4 requests)" in done.stdout
    assert "? question 4" in done.stdout and "again question 4" in done.stdout
    assert "run try: 4 replies, 0 the same to the last character, half of them alike to 40%" in done.stdout

    # the rest, with the same name; then nothing is left, and the comparison is made all the same
    done = llmtap("replay", "--to", url, "--to-model", "new", "--run", "try", "--format", "json")
    assert done.exit_code == 0 and len(handler.seen) == 5
    made = orjson.loads(done.stdout)
    assert (made["run"], made["replies"]["count"], made["b"]["requests"]) == ("try", 5, 5)
    done = llmtap("replay", "--to", url, "--run", "try", "--format", "jsonl")
    assert done.exit_code == 0 and len(handler.seen) == 5
    assert [orjson.loads(line)["group"] for line in done.stdout.splitlines()][:3] == ["run", "a", "b"]

    # they are exchanges like any others
    done = llmtap("compare", "tag:replay:try", "key:ci", "--format", "json")
    assert orjson.loads(done.stdout)["a"]["requests"] == 5


def test_a_dry_run_sends_nothing(folder: Path, server: tuple[str, type[Server]]) -> None:
    url, handler = server
    done = llmtap("replay", "--to", url, "--to-model", "new", "--api-key", "sk", "--dry-run", "--limit", 2, "--run", "r")
    assert done.exit_code == 0 and not handler.seen
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run r: 2 requests to ") and len(lines) == 3
    assert lines[1].split()[1:] == ["chat", "new", "1", "message"]


def test_a_run_that_was_stopped_sends_only_the_rest(
    folder: Path, server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = server

    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmtap_launcher.cli.replay._say", stop)  # all is sent by then, and only in the spool
    done = llmtap("replay", "--to", url, "--limit", 3, "--run", "r")
    assert done.exit_code == 1 and len(handler.seen) == 3
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    done = llmtap("replay", "--run", "r", "--report", "--format", "json")
    assert done.exit_code == 0 and orjson.loads(done.stdout)["replies"]["count"] == 3, done.output
    assert llmtap("replay", "--to", url, "--run", "r").exit_code == 0
    assert len(handler.seen) == 5


def test_a_stopped_run_says_how_it_goes_on(
    folder: Path, server: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmtap_launcher.replay.send.VLLMMiddleware.chat_completion", stop)
    done = llmtap("replay", "--to", server[0], "--run", "r")
    assert done.exit_code == 1 and "stopped; --run r goes on with the rest" in done.stderr


def test_wrong_usage(folder: Path) -> None:
    for words, said in (
        (["--report"], "--report goes with --run NAME"),
        (["--report", "--run", "r", "--dry-run"], "not with --dry-run"),
        (["--run", "a b"], "up to 64 letters"),
        (["--set", "temperature"], "is not NAME=VALUE"),
        (["--set", "model=x"], "--to-model"),
        (["--limit", "-1"], "--limit"),
    ):
        done = llmtap("replay", *words)
        assert done.exit_code == 2 and said in done.stderr, (words, done.output)


def test_failures_are_told(folder: Path, server: tuple[str, type[Server]]) -> None:
    url, handler = server
    handler.status = 400
    done = llmtap("replay", "--to", url, "--run", "r")
    assert done.exit_code == 1
    assert "failed: 5 (400 bad): " in done.stderr and "no request was answered" in done.stderr
    for words, said in (
        (["--to", "nobody"], "neither a backend"),
        (["--to", "http://127.0.0.1:9"], "http://127.0.0.1:9/v1/chat/completions:"),
        (["--api-key", "x", "--to", url, "--since", "2030-01-01"], "nothing that was captured fits"),
        (["--to", url, "--sql", "SELECT 1"], "--sql"),
        (["--report", "--run", "other"], "no replies of a run 'other'"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ):
        done = llmtap("replay", *words)
        assert done.exit_code == 1 and said in done.stderr, (words, done.output)
        assert "Traceback" not in done.output
