"""`llmtap up` with everything real: sims, gateway, writer, Datasette, as a user starts and stops them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtap_launcher import guard
from support.launcher import Up, llmtap, plain, running_up
from support.sim import running_sim
from support.wait import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not guard.have_proc(), reason="looks at processes through /proc"),
]


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "sim-small", "messages": [{"role": "user", "content": prompt}], **more}


def captured(up: Up, text: str) -> tuple[str, str] | None:
    """Outcome and backend of the exchange whose request says `text`, once it is in the database."""
    with closing(sqlite3.connect(f"file:{up.data}/capture.db?mode=ro", uri=True)) as db:
        row = db.execute(
            "select e.outcome, e.backend from exchanges e join messages m on m.hash = e.input_tip"
            " join bodies b on b.id = m.body_id where b.text = ? and e.outcome <> 'open'",
            [text],
        ).fetchone()
    return tuple(row) if row is not None else None


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up"), "--dry-run") as up:
        yield up


def test_the_table_names_every_url_and_is_plain_text(dry_run: Up) -> None:
    text = "\n".join(dry_run.out)
    assert plain(text)
    rows = {line[:16].strip(): line[16:].split() for line in dry_run.out}
    urls = dry_run.state["urls"]
    assert rows["OpenAI base URL"] == [urls["openai"], "ready"]
    assert rows["Datasette"] == [urls["datasette"], "ready"]
    assert rows["Metrics"] == [urls["metrics"]]
    for backend in dry_run.state["backends"]:
        assert rows[f"Backend {backend['name']}"] == [backend["url"], "ready,", "sim-small"]
    for url in (urls["datasette"], urls["metrics"], f"{urls['openai']}/models", f"{urls['gateway']}/health/ready"):
        assert httpx.get(url, follow_redirects=True).status_code == 200, url
    assert f"data folder: {dry_run.data}" in dry_run.out


def test_the_line_to_try_works(dry_run: Up) -> None:
    line = next(line for line in dry_run.out if line.startswith("try: curl "))
    words = shlex.split(line.removeprefix("try: "))
    answer = httpx.post(words[2], content=words[-1], headers={"content-type": "application/json"}, timeout=30)
    assert answer.json()["choices"][0]["message"]["content"]


def test_an_exchange_gets_into_the_database(dry_run: Up) -> None:
    answer = httpx.post(f"{dry_run.url}/v1/chat/completions", json=chat("from up", max_tokens=5), timeout=30)
    assert answer.status_code == 200
    found = eventually(lambda: captured(dry_run, "from up"), "not captured")
    assert found == ("ok", answer.headers["x-llmtap-backend"])


def test_output_is_labelled_by_process(dry_run: Up) -> None:
    for line in dry_run.log:
        label, bar, _ = line.partition(" | ")
        assert bar, line
        assert label in ("a", "b", "writer", "gateway", "datasette", "llmtap"), line


def test_a_sims_command_line_shows_its_port(dry_run: Up) -> None:
    for backend in dry_run.state["backends"]:
        words = Path(f"/proc/{dry_run.pid(backend['name'])}/cmdline").read_text().split("\0")
        assert words[words.index("--port") + 1] == backend["url"].rpartition(":")[2]


def test_status(dry_run: Up) -> None:
    done = llmtap("status", "--json", cwd=dry_run.data.parent)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["launcher"]["pid"] == dry_run.process.pid
    assert found["writer"]["state"] == "running"
    assert {backend["name"]: backend["health"] for backend in found["backends"]} == {"a": "up", "b": "up"}
    assert found["database_bytes"] > 0
    text = llmtap("status", cwd=dry_run.data.parent)
    assert text.returncode == 0
    assert plain(text.stdout)
    assert "spool lag" in text.stdout


def test_one_launcher_a_data_folder(dry_run: Up) -> None:
    done = llmtap("up", "--dry-run", cwd=dry_run.data.parent)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"Error: llmtap runs already on {dry_run.data} (process {dry_run.process.pid}); stop it, or set another capture.dir\n"
    )


def test_files_with_secrets_are_private(dry_run: Up) -> None:
    for name in ("gateway.yaml", "state.json", "lock"):
        assert (dry_run.data / "run" / name).stat().st_mode & 0o077 == 0, name


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    with running_up(tmp_path, "--dry-run") as up:
        pids = [*up.pids().values(), up.process.pid]
        for pid in up.pids().values():
            found = guard.stat(pid)
            assert found is not None and found.state != "Z"
            assert found.session == pid  # a session of its own: the terminal's Ctrl-C reaches the launcher only
        assert up.stop() == 0
        assert up.out[-2:] == ["stopping; once more to stop at once", "stopped"]
        assert up.left() == []
        for pid in pids:
            assert guard.stat(pid) is None
        assert not (up.data / "run" / "state.json").exists()
        order = [line.split(" | ")[0] for line in up.log if "Shutting down" in line or "stopped:" in line]
        assert order == ["datasette", "writer"]
    assert llmtap("status", cwd=tmp_path).returncode == 1


def test_a_running_stream_is_finished_before_the_stop(tmp_path: Path) -> None:
    with running_up(tmp_path, "--dry-run") as up:
        first, got = threading.Event(), bytearray()

        def read() -> None:
            body = chat("slowly [[sim:tps=20]] [[sim:tokens=30]]", stream=True)
            url = f"{up.url}/v1/chat/completions"
            with suppress(httpx.HTTPError), httpx.stream("POST", url, json=body, timeout=60) as answer:
                for piece in answer.iter_bytes():
                    got.extend(piece)
                    first.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert first.wait(20)
        assert up.stop() == 0
        reader.join()
        assert bytes(got).endswith(b"data: [DONE]\n\n")
        # and the writer, stopped after the gateway, has taken it in
        found = captured(up, "slowly [[sim:tps=20]] [[sim:tokens=30]]")
        assert found is not None and found[0] == "ok"


def test_ctrl_c_twice_does_not_wait_for_streams(tmp_path: Path) -> None:
    with running_up(tmp_path, "--dry-run", config={"server": {"drain_timeout_s": 600}}) as up:
        url = f"{up.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=chat("long [[sim:tps=1]] [[sim:tokens=500]]", stream=True), timeout=60) as answer:
            assert next(answer.iter_bytes())
            up.process.send_signal(signal.SIGINT)
            eventually(lambda: "stopping; once more to stop at once" in up.out, "did not begin to stop")
            assert up.stop(signal.SIGINT, timeout_s=30) == 0
        assert up.left() == []


@pytest.mark.parametrize("name", ["a", "gateway", "writer", "datasette"])
def test_what_dies_is_started_again(tmp_path: Path, name: str) -> None:
    with running_up(tmp_path, "--dry-run") as up:
        before = up.pid(name)
        os.kill(before, signal.SIGKILL)

        def again() -> bool:
            process = next(p for p in up.state["processes"] if p["name"] == name)
            return process["state"] == "ready" and process["pid"] not in (None, before)

        eventually(again, f"{name} was not started again")
        assert f"{name} | [llmtap] was ended by SIGKILL; starting again in 1 s" in up.log
        answer = httpx.post(f"{up.url}/v1/chat/completions", json=chat(f"after {name}", max_tokens=3), timeout=30)
        assert answer.status_code == 200
        eventually(lambda: captured(up, f"after {name}"), "not captured")
        assert up.stop() == 0
        assert up.left() == []


def test_a_server_that_runs_already_is_left_alone(tmp_path: Path) -> None:
    with running_sim(model="theirs", ttft_ms=0, tokens_per_second=0) as sim, running_up(tmp_path, "--backend", sim.url) as up:
        assert any(line.split() == ["Backend", sim.url.removeprefix("http://"), sim.url, "up,", "theirs"] for line in up.out)
        assert '"model": "theirs"' in next(line for line in up.out if line.startswith("try: "))
        assert up.stop() == 0
        assert httpx.get(f"{sim.url}/health").status_code == 200


def test_inspection_in_the_browser(tmp_path: Path) -> None:
    with running_up(tmp_path, "--dry-run", "--web") as up:
        url = next(line for line in up.out if line.startswith("Web UI")).split()[2]
        assert "token=" in url
        assert up.state["urls"]["web"] == url
        assert httpx.get(url, follow_redirects=True).status_code == 200
        assert httpx.get(url.partition("?")[0]).status_code == 403
        answer = httpx.post(f"{up.url}/v1/chat/completions", json=chat("seen", max_tokens=3), timeout=30)
        assert answer.status_code == 200
        assert up.stop() == 0


VLLM = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
assert sys.argv[1:3] == ["serve", "org/model"], sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])
# what real vLLM does: an engine process that does not end by itself when its parent is gone
engine = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nwhile True: signal.pause()"
subprocess.Popen([sys.executable, "-c", engine])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"data": [{"id": "org/model"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): ...
print("flags", *sys.argv[3:], flush=True)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_an_engine_of_several_processes(tmp_path: Path) -> None:
    script = tmp_path / "vllm.py"
    script.write_text(VLLM)
    args = {"dtype": "auto", "enforce-eager": True, "served-model-name": ["x", "y"]}
    launch = {"engine": "vllm", "model": "org/model", "command": f"{sys.executable} {script}", "args": args}
    with running_up(tmp_path, config={"backends": [{"name": "big", "launch": launch}]}) as up:
        eventually(lambda: "big is ready after" in "\n".join(up.out) or "ready," in "\n".join(up.out), "the engine is not ready")
        port = up.state["backends"][0]["url"].rpartition(":")[2]
        assert f"big | flags --host 127.0.0.1 --port {port} --dtype auto --enforce-eager --served-model-name x y" in up.log
        group = up.pid("big")
        assert len([pid for pid, found in guard.processes() if found.pgrp == group]) == 2
        assert up.stop() == 0
        assert not guard.group_alive(group)
        assert up.left() == []


@pytest.mark.parametrize(
    ("args", "config", "status", "message"),
    [
        ((), {"management": {"enabled": False}}, 2, "nothing to serve; one of:"),
        (("--model", "org/m"), {}, 1, "Error: vllm not found; install it with `llmtap engine install vllm`"),
        (
            ("--dry-run",),
            {"capture": {"dir": "llmtap.yaml/data"}},
            1,
            "Error: the data folder .*llmtap.yaml/data cannot be written: Not a directory",
        ),
        (("--dry-run",), {"server": {"prot": 1}}, 1, "llmtap.yaml:.*prot"),
    ],
)
def test_mistakes_are_one_clear_message(
    tmp_path: Path, args: tuple[str, ...], config: dict[str, Any], status: int, message: str
) -> None:
    env = {"PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(tmp_path)}
    with running_up(tmp_path, *args, config=config, env=env, ready=False) as up:
        assert up.process.wait(60) == status
    text = "\n".join(up.log)
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert up.out == []


def test_port_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with running_up(tmp_path, "--dry-run", "--port", str(port), ready=False) as up:
            assert up.process.wait(60) == 1
    assert up.log == [f"Error: port {port} is in use; choose another with --port"]


def test_a_taken_datasette_port_is_told_and_not_fatal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with running_up(tmp_path, "--dry-run", config={"datasette": {"port": port}}) as up:
            line = next(line for line in up.out if line.startswith("Datasette"))
            assert line.endswith(f"failed (datasette: port {port} is in use; set another datasette.port)")
            assert httpx.get(f"{up.url}/health").status_code == 200
            assert up.stop() == 0


def test_a_backend_that_cannot_start_is_told_and_not_fatal(tmp_path: Path) -> None:
    bad = {"name": "bad", "launch": {"engine": "sim", "model": "sim-small", "args": {"no-such-option": 1}}}
    good = {"name": "good", "launch": {"engine": "sim", "model": "sim-small"}}
    with running_up(tmp_path, config={"backends": [bad, good]}, ready=False) as up:
        eventually(lambda: any("No such option" in line for line in up.log), "the engine's own words are not shown")
        up.ready()
        answer = httpx.post(f"{up.url}/v1/chat/completions", json=chat("x", max_tokens=3), timeout=30)
        assert answer.headers["x-llmtap-backend"] == "good"
        eventually(lambda: "is not started again" in "\n".join(up.log), "no end of the crash loop", timeout_s=60)
        assert httpx.get(f"{up.url}/health").status_code == 200
        assert up.stop() == 0
