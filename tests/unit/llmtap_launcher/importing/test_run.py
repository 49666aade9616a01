"""An import from beginning to end: again and again, with bad lines, with a writer at work."""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.importing import run as module
from llmtap_launcher.importing.run import Imported, files_of, kind_of, run
from llmtap_launcher.store.database import connect_ro
from llmtap_launcher.store.writer import Writer

REPLY = {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hey"}, "finish_reason": "stop"}]}


def log(number: int, **more: Any) -> bytes:
    line = {
        "timestamp": f"2025-11-21T09:30:{number % 60:02}",
        "request_id": f"r{number}",
        "model": "m",
        "messages": [{"role": "user", "content": f"q{number}"}],
        "response": REPLY,
        "parameters": {},
        "latency_ms": 5,
        "error": None,
        "metadata": {},
        **more,
    }
    return orjson.dumps(line) + b"\n"


def go(data: Path, *paths: Path, **given: Any) -> Imported:
    with closing(Writer(data)) as writer:
        writer.run_pass()
        done = run(paths, data, data / "capture.db", **given)
        writer.run_pass()
    return done


def count(data: Path) -> int:
    with closing(connect_ro(data / "capture.db")) as conn:
        return int(conn.execute("SELECT count(*) FROM exchanges").fetchone()[0])


def test_again_changes_nothing(tmp_path: Path) -> None:
    path, data = tmp_path / "log.jsonl", tmp_path / "data"
    path.write_bytes(b"".join(map(log, range(700))))
    done = go(data, path, key_name="old", tags=("history",))
    assert (done.stored, done.known, done.problems, count(data)) == (700, 0, 0, 700)
    path.write_bytes(path.read_bytes() + log(700))
    done = go(data, path)
    assert (done.stored, done.known, count(data)) == (1, 700, 701)
    with closing(connect_ro(data / "capture.db")) as conn:
        assert {tuple(row) for row in conn.execute("SELECT key_name, tags FROM exchanges WHERE request_id <> 'r700'")} == {
            ("old", '["history"]')
        }


def test_bad_lines_are_told_and_put_aside(tmp_path: Path) -> None:
    path, data = tmp_path / "log.jsonl", tmp_path / "data"
    bad = [b"{not json\n", b"[]\n", log(2, timestamp="never"), log(3, messages={"no": 1}), b"\xff\xfe\n"]
    path.write_bytes(log(0) + b"\n".join([b"", *(line.strip() for line in bad), b""]) + b"\n" + log(1))
    done = go(data, path)
    assert (done.stored, done.problems) == (2, 5)
    assert [(problem.number, problem.reason) for problem in done.shown] == [
        (3, "not JSON"),
        (4, "not a JSON object"),
        (5, "no time that can be read"),
        (6, "messages that are none"),
        (7, "not JSON"),
    ]
    kept = [orjson.loads(line) for line in (data / "quarantine.jsonl").read_bytes().splitlines()]
    assert [entry["end"] for entry in kept] == [3, 4, 5, 6, 7] and kept[0]["line"] == "{not json\n"


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(log(0) + b"nonsense\n" * 50)
    done = go(tmp_path / "data", path)
    assert (done.problems, len(done.shown)) == (50, 20)


def test_folders_packed_files_and_batches(tmp_path: Path) -> None:
    logs, data = tmp_path / "logs", tmp_path / "data"
    logs.mkdir()
    (logs / "a.jsonl.gz").write_bytes(gzip.compress(log(0)))
    (logs / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + log(1))
    (logs / "notes.txt").write_text("no log")
    request = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    }
    result = {
        "id": "b",
        "custom_id": "c",
        "response": {"status_code": 200, "body": {**REPLY, "created": 1763717400}},
        "error": None,
    }
    (logs / "out.jsonl").write_bytes(orjson.dumps(result) + b"\n")
    (tmp_path / "in.jsonl").write_bytes(orjson.dumps(request) + b"\n")
    done = go(data, logs, tmp_path / "in.jsonl")
    assert (done.stored, done.problems, done.requests) == (3, 0, 1)
    assert [path.name for path in files_of([logs])] == ["a.jsonl.gz", "b.jsonl", "out.jsonl"]
    with pytest.raises(LlmtapError, match="results"):
        go(data, tmp_path / "in.jsonl")


def test_kinds_of_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content, kind in (
        (b'{"log": {"entries": []}}', "har"),
        (b'{\n "log": {\n  "entries": []\n }\n}', "har"),
        (log(1), "lines"),
        (b"{broken\n" + log(1), "lines"),
        (b'{"custom_id": "a", "url": "/", "method": "POST", "body": {}}', "requests"),
        (b"12:whatever", "flow"),
        (b"{\n", "lines"),
    ):
        path.write_bytes(content)
        assert kind_of(path) == kind, content
    path.write_bytes(b"plain text")
    with pytest.raises(LlmtapError, match="neither"):
        kind_of(path)


def test_har_and_flow_files_and_others(tmp_path: Path) -> None:
    har = tmp_path / "a.har"
    har.write_bytes(b'{"log": {"entries": [{}]}}')
    flow = tmp_path / "b.flow"
    flow.write_bytes(b"3:1:1")
    broken = tmp_path / "c.har"
    broken.write_bytes(b'{\n"log": {"entries": [}')
    done = go(tmp_path / "data", har, flow, broken)
    assert (done.stored, done.problems) == (0, 3)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LlmtapError, match="no such file"):
        files_of([tmp_path / "missing"])
    with pytest.raises(LlmtapError, match=r"no \.jsonl"):
        files_of([tmp_path])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(log(0) * 3000)[:-40])
    done = go(tmp_path / "data", cut)
    assert done.problems >= 1 and "cannot be read on" in done.shown[-1].reason


def test_full_segments_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEGMENT", 20_000)
    path, told = tmp_path / "log.jsonl", []
    path.write_bytes(b"".join(map(log, range(200))))
    done = go(tmp_path / "data", path, on_segment=lambda: told.append(1))
    assert (done.stored, count(tmp_path / "data")) == (200, 200) and len(told) > 3
