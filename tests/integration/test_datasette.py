"""The pages in a real Datasette process, started as `llmtap up` and `llmtap browse` start it."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtap.core.record import Choice
from llmtap_launcher.datasette import command, security
from llmtap_launcher.ports import free_ports
from llmtap_launcher.store.backup import backup
from support.captures import Captures, weather
from support.datasette_server import Server, serve
from support.wait import eventually

pytestmark = pytest.mark.integration

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)></textarea></title><svg onload=alert(3)>"


class Site:
    """A server and what is captured behind it."""

    def __init__(self, server: Server, captures: Captures, uids: list[str]) -> None:
        self.server, self.captures, self.uids = server, captures, uids
        self.get, self.rows = server.get, server.rows


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("captures")
    with Captures(folder) as captures:
        uids = weather(captures)
        failed = {"status": 503, "error_type": "no_healthy_backend", "error_message": "no healthy backend serves m"}
        captures.exchange([{"role": "user", "content": "hello?"}], outcome="rejected", duration_ms=0.4, served=None, **failed)
        hostile = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE, "name": HOSTILE}]
        asked = {k: HOSTILE for k in ("model", "key_name", "user_agent", "request_id")}
        asked["metadata"] = {HOSTILE: HOSTILE}
        reply = Choice(0, content=HOSTILE, reasoning=HOSTILE, finish_reason=HOSTILE)
        uids.append(captures.exchange(hostile, reply, asked=asked, served=HOSTILE, error_message=HOSTILE, backend=HOSTILE))
        captures.store()
        with serve(captures.db, folder / "log") as server:
            yield Site(server, captures, uids)


class Elements(HTMLParser):
    """The tags of a page, and every address in it that a browser would load by itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.inline_scripts = 0
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if given.get("src"):
            self.loads.append(str(given["src"]))
        if tag == "link" and given.get("rel") == "stylesheet":
            self.loads.append(str(given["href"]))
        if tag == "script" and "src" not in given:
            self.inline_scripts += 1


def pages(uid: str) -> list[str]:
    return [
        "/capture/requests",
        "/capture/requests?outcome=ok&_sort=duration_ms",
        "/capture/requests?_filter_column_1=model&_filter_op_1=contains&_filter_value_1=Qwen",
        "/capture/slow",
        "/capture/errors",
        "/capture/latency",
        "/capture/tokens_per_hour",
        "/capture/cost",
        "/capture/compare",
        "/capture/compare?a=Qwen%2FQwen3-8B&b=%3Cscript%3E",
        "/capture/conversations",
        "/-/dashboard",
        "/-/dashboard?range=30d&model=%3Cscript%3E&key=%22%3E",
        "/capture/usage_hourly",
        "/capture/latency_hist",
        "/capture/otel_spans",
        "/capture/ratings",
        "/-/conversation/1",
        "/capture/search?q=script",
        f"/capture/transcript?id={uid}",
        f"/-/transcript/{uid}",
        f"/-/transcript/{uid}?all=1",
        "/capture",
        "/capture?sql=select+*+from+bodies",
        "/capture/exchanges",
        "/capture/bodies",
        "/capture/bodies/1",
        "/capture/requests?_facet=backend",
    ]


@pytest.mark.parametrize("index", range(len(pages(""))))
def test_every_page_answers_escapes_what_was_captured_and_loads_nothing_from_elsewhere(site: Site, index: int) -> None:
    answer = site.server.http.get(pages(site.uids[-1])[index], follow_redirects=True)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-security-policy"] == security.POLICY
    seen = Elements(answer.text)
    assert "img" not in seen.tags and seen.inline_scripts == 0 and seen.handlers == []
    assert seen.loads and all(re.match(r"/-/(static|llmtap)/", url) for url in seen.loads), seen.loads
    for url in seen.loads:
        assert site.get(url).status_code == 200, url


def test_the_root_leads_to_the_requests_newest_first(site: Site) -> None:
    answer = site.server.http.get("/", follow_redirects=True)
    assert answer.url.path == "/capture/requests"
    times = re.findall(r'<time datetime="([^"]+)"', answer.text)
    assert len(times) == 5 and times == sorted(times, reverse=True)
    assert f'href="/-/transcript/{site.uids[0]}"' in answer.text
    for facet in ("model", "key_name", "status", "finish_reason", "outcome"):
        assert f'id="facet-{facet}"' in answer.text
    assert "rejected 503" in answer.text and "3.91 s" in answer.text


@pytest.mark.parametrize("path", ["/-/transcript/{}", "/capture/transcript?id={}"])
def test_a_transcript_shows_the_conversation_and_its_facts(site: Site, path: str) -> None:
    answer = site.server.http.get(path.format(site.uids[1]))
    assert answer.status_code == 200
    text = answer.text
    order = [
        "You are a weather assistant",
        "Should I take an umbrella?</div>",
        "get_weather",
        "&#34;sky&#34;: &#34;rain&#34;",
        "Have a good trip!",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    for fact in ("184 ms", "3.91 s", "211", "121", "production", "0.7", "512", "stop", site.uids[1], "Tools offered"):
        assert fact in text, fact
    assert f'rel="prev" href="/-/transcript/{site.uids[0]}"' in text
    assert f'rel="next" href="/-/transcript/{site.uids[2]}"' in text
    assert '<svg class="pace"' in text and 'class="stall"' in text


def test_the_end_of_a_broken_off_exchange_is_told(site: Site) -> None:
    text = site.get(f"/-/transcript/{site.uids[2]}").text
    assert "Oslo: 2 °C, sn" in text and "The client went away" in text


def test_a_transcript_by_the_clients_own_id(site: Site) -> None:
    assert site.uids[0] in site.get("/-/transcript/trip-1").text
    assert [row["role"] for row in site.rows("transcript", id="trip-1")] == ["system", "user", "assistant"]


@pytest.mark.parametrize("ident", ["nope", "%3Cscript%3E", "a%2Fb", "%00"])
def test_no_such_transcript(site: Site, ident: str) -> None:
    answer = site.get(f"/-/transcript/{ident}")
    assert answer.status_code == 404 and "No exchange has this id" in answer.text
    assert answer.headers["content-security-policy"] == security.POLICY


def test_the_transcript_query_answers_as_json_in_order(site: Site) -> None:
    rows = site.rows("transcript", id=site.uids[1])
    assert [(r["depth"], r["role"], r["reply"]) for r in rows] == [
        (0, "system", 0),
        (1, "user", 0),
        (2, "assistant", 0),
        (3, "tool", 0),
        (4, "tool", 0),
        (5, "assistant", 1),
    ]
    assert site.rows("transcript") == [] and site.rows("transcript", id="x") == []


def test_slow_and_its_limit(site: Site) -> None:
    durations = [row["duration_ms"] for row in site.rows("slow")]
    assert durations == sorted(durations, key=lambda ms: -float(str(ms))) and len(durations) == 5
    assert [row["duration_ms"] for row in site.rows("slow", limit_ms="3000")] == [3912.5]
    assert len(site.rows("slow", limit_ms="")) == 5


def test_errors_are_those_that_failed_or_were_cut_off(site: Site) -> None:
    assert sorted(str(row["outcome"]) for row in site.rows("errors")) == ["client_abort", "rejected"]


def test_latency_and_tokens_by_model(site: Site) -> None:
    (row,) = [r for r in site.rows("latency") if r["model"] == "Qwen/Qwen3-8B"]
    assert row["requests"] == 3 and row["errors"] == 1
    # of the two that went well; a histogram is right to 5 %
    assert row["ttft_p50_ms"] == pytest.approx(190, rel=0.05) and row["duration_p50_ms"] == pytest.approx(1312.7, rel=0.05)
    (row,) = [r for r in site.rows("tokens_per_hour") if r["model"] == "Qwen/Qwen3-8B"]
    assert (row["hour"], row["prompt_tokens"], row["completion_tokens"]) == ("2025-11-21 09:00", 353, 162)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("sunglasses", {"assistant"}),
        ('"take an umbrella"', {"user", "assistant"}),
        ("umbrella nowhere", set()),
        ("", set()),
        ('"', set()),
        ("NEAR ( *", set()),
        ("Ümbrella", {"user", "assistant"}),  # as written without diacritics
        ("umbrella OR nowhere", set()),
        ("UMBRELLA tokyo", {"user", "assistant"}),
    ],
)
def test_search(site: Site, words: str, found: set[str]) -> None:
    rows = site.rows("search", q=words)
    assert {row["role"] for row in rows} == found
    assert all(row["uid"] in site.uids for row in rows)


def test_hits_are_highlighted(site: Site) -> None:
    assert "so take an <mark>umbrella</mark>" in site.get("/capture/search", q="umbrella").text


def test_csv_has_the_raw_values(site: Site) -> None:
    rows = list(csv.DictReader(io.StringIO(site.get("/capture/slow.csv").text)))
    assert rows[0]["duration_ms"] == "3912.5" and rows[0]["uid"] == site.uids[1]
    listed = list(csv.DictReader(io.StringIO(site.get("/capture/requests.csv").text)))
    assert {row["uid"] for row in listed} >= set(site.uids)


def test_a_row_is_there_as_soon_as_it_is_committed(site: Site) -> None:
    uid = site.captures.begin([{"role": "user", "content": "are you live?"}])
    site.captures.store()
    assert uid in site.get("/capture/requests").text
    assert "Still running" in site.get(f"/-/transcript/{uid}").text
    site.captures.end(uid, [Choice(0, content="I am.", finish_reason="stop")])
    site.captures.store()
    answer = site.get(f"/-/transcript/{uid}")
    assert "I am." in answer.text and "Still running" not in answer.text
    assert answer.headers["cache-control"] == "no-cache"


def test_pages_answer_while_the_writer_writes(site: Site) -> None:
    stop, failures, written = threading.Event(), [], 0
    paths = [
        "/capture/requests",
        "/capture/slow",
        f"/-/transcript/{site.uids[1]}",
        "/capture/search?q=umbrella",
        "/capture/latency",
    ]

    def read() -> None:
        with httpx.Client(base_url=site.server.url, timeout=30, trust_env=False) as client:
            while not stop.is_set():
                for path in paths:
                    answer = client.get(path)
                    if answer.status_code != 200 or "timed out" in answer.text:
                        failures.append((path, answer.status_code, answer.text[:500]))
            loads.append(1)

    loads: list[int] = []
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(60):
            for _ in range(20):
                site.captures.exchange([{"role": "user", "content": f"busy {written}"}], f"reply {written}", ttft_ms=1.0)
                written += 1
            site.captures.store()
    finally:
        stop.set()
        reader.join(60)
    assert failures == [] and loads == [1]
    (row,) = site.rows("search", q=f'"busy {written - 1}"')
    assert row["role"] == "user"


def test_nothing_can_be_written_through_it(site: Site) -> None:
    for statement in ("delete from exchanges", "pragma journal_mode=delete", "attach database 'x.db' as x"):
        assert site.get("/capture.json", sql=statement).status_code == 400
    answer = site.server.http.post("/capture/requests", data={"x": "1"})
    assert answer.status_code in (403, 405, 500)
    assert site.get("/capture.db").status_code == 403


def test_a_page_of_another_name_gets_nothing(site: Site) -> None:
    answer = site.server.http.get("/capture/requests", headers={"host": "evil.example"})
    assert answer.status_code == 403 and "umbrella" not in answer.text


def test_what_was_searched_is_not_logged(site: Site) -> None:
    site.get("/capture/search", q="very-private-words")
    assert "very-private-words" not in site.server.log.read_text()


def test_a_fresh_database_has_an_empty_landing_page(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures, serve(captures.db, tmp_path / "log") as server:
        for path in ("/capture/requests", "/capture/slow", "/capture/latency", "/capture/tokens_per_hour", "/capture/search?q=x"):
            assert server.get(path).status_code == 200, path
        assert "No requests captured yet" in server.get("/capture/requests").text
        uid = captures.exchange([{"role": "user", "content": "first"}], "reply")
        captures.store()
        assert uid in server.get("/capture/requests").text


def test_a_database_that_gets_its_tables_later_needs_no_restart(tmp_path: Path) -> None:
    db = tmp_path / "capture.db"
    db.touch()
    with serve(db, tmp_path / "log") as server:
        early = server.get("/")
        assert early.status_code == 503 and "Reload in a moment" in early.text
        with Captures(tmp_path):
            assert server.get("/").status_code == 302
            assert "No requests captured yet" in server.get("/capture/requests").text


def test_a_copy_under_another_name_is_browsed_by_the_command(site: Site, tmp_path: Path) -> None:
    copy = tmp_path / "back up-may.1.db"
    with closing(sqlite3.connect(site.captures.db)) as live, closing(sqlite3.connect(copy)) as target:
        live.backup(target)
    argv = [sys.executable, "-m", "llmtap_launcher", "browse", str(copy), "--port", "0"]
    process = subprocess.Popen(
        argv, env=command.datasette_env(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        match = re.search(r"(http://127\.0\.0\.1:\d+)/", process.stdout.readline())
        assert match is not None
        with httpx.Client(base_url=match[1], timeout=30, trust_env=False, follow_redirects=True) as client:
            eventually(lambda: _status(client, command.READY_PATH) == 200, "not ready", timeout_s=60)
            landing = client.get("/")
            assert landing.status_code == 200 and "/-/transcript/" in landing.text
            link = re.search(r'href="([^"]+/slow)"', landing.text)
            assert link is not None and client.get(link[1]).status_code == 200
            assert client.get(f"/-/transcript/{site.uids[1]}").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest


def _status(client: httpx.Client, path: str) -> int | None:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return None


def test_starting_and_reading_leaves_a_copy_as_it_is(site: Site, tmp_path: Path) -> None:
    copy = tmp_path / "capture.db"
    with closing(sqlite3.connect(site.captures.db)) as live, closing(sqlite3.connect(copy)) as target:
        live.backup(target)
    before, changed = copy.read_bytes(), copy.stat().st_mtime_ns
    with serve(copy, tmp_path / "log") as server:
        assert server.get("/capture/requests").status_code == 200
    assert copy.read_bytes() == before and copy.stat().st_mtime_ns == changed


@pytest.mark.parametrize("shadow", ["json.py", "datasette", "secrets.py"])
def test_the_folder_it_is_started_in_cannot_shadow_anything(site: Site, tmp_path: Path, shadow: str) -> None:
    if shadow.endswith(".py"):
        (tmp_path / shadow).write_text("raise SystemExit('shadowed')")
    else:
        (tmp_path / shadow).mkdir()
        (tmp_path / shadow / "__main__.py").write_text("raise SystemExit('shadowed')")
    argv = command.datasette_argv(site.captures.db, "127.0.0.1", 0)
    done = subprocess.run(
        [*argv, "--get", "/-/versions.json"],
        cwd=tmp_path,
        env=command.datasette_env(_clean()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and '"datasette"' in done.stdout, done.stderr


def _clean() -> dict[str, Any]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def test_the_landing_page_is_small_and_fast_with_many_exchanges(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        for i in range(2000):
            captures.exchange([{"role": "user", "content": f"question {i} " + "word " * 60}], f"answer {i} " + "word " * 60)
        captures.store()
        with serve(captures.db, tmp_path / "log") as server:
            answer = server.get("/capture/requests")
            assert "2,000" in answer.text
            assert len(answer.content) < 100_000
            assert answer.elapsed.total_seconds() < 5
    shutil.rmtree(tmp_path / "spool")


# more pages


def test_a_conversation_is_stepped_through(site: Site) -> None:
    (talk,) = [row for row in site.rows("conversations", turns="3") if row["turns"] == 3]
    answer = site.server.http.get(f"/-/conversation/{talk['conversation']}", follow_redirects=True)
    assert answer.url.path == f"/-/transcript/{site.uids[2]}"
    assert "Turn 3 of 3" in answer.text
    for uid in site.uids[:2]:
        assert f'href="/-/transcript/{uid}"' in answer.text
    assert site.get("/-/conversation/999999").status_code == 404
    assert f'href="/-/conversation/{talk["conversation"]}"' in site.get("/capture/conversations", turns="3").text


def test_a_stream_has_its_timeline(site: Site) -> None:
    text = site.get(f"/-/transcript/{site.uids[1]}").text
    assert '<svg class="timeline"' in text
    assert "2 stalls, the longest of 210 ms after" in text
    assert '<svg class="timeline"' not in site.get(f"/-/transcript/{site.uids[0]}").text


def test_the_dashboard(site: Site) -> None:
    text = site.get("/-/dashboard").text
    assert text.count('<svg class="chart"') >= 4
    assert 'class="tab here" href="/-/dashboard" aria-current="page"' in text
    assert "&lt;script&gt;" in text
    chosen = site.get("/-/dashboard", model="Qwen/Qwen3-8B", range="30d").text
    assert "<option selected>Qwen/Qwen3-8B</option>" in chosen
    for kind in ("csv", "json"):
        (href,) = set(re.findall(rf'href="(/capture/usage_hourly\.{kind}[^"]*)"', text))
        assert site.get(href.replace("&amp;", "&")).status_code == 200


def test_comparing_two_models(site: Site) -> None:
    rows = {row["what"]: row for row in site.rows("compare", a="Qwen/Qwen3-8B", b="qwen3-8b")}
    assert rows["requests"]["a"] >= 3
    assert rows["requests"]["b"] == 1
    assert rows["requests"]["b_over_a"] == round(1 / rows["requests"]["a"], 2)
    (busiest,) = {row["model_a"] for row in site.rows("compare")}
    assert busiest == "Qwen/Qwen3-8B"


def test_a_request_can_be_sent_again(site: Site) -> None:
    body = site.get(f"/-/request/{site.uids[1]}.json").json()
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert (body["temperature"], body["stream"]) == (0.7, True)
    assert body["tools"][0]["function"]["name"] == "get_weather"
    text = site.get(f"/-/transcript/{site.uids[1]}").text
    assert f"/-/request/{site.uids[1]}.json | curl -sN http://127.0.0.1:8000/v1/chat/completions" in text
    shown = html.unescape(text)
    (line,) = re.findall(r"curl -sN http://127.0.0.1:8000/v1/chat/completions (.+?) --data-binary", shown)
    for key, sent in (("", 2), ("sk-mine", 4)):  # as a shell takes it
        words = subprocess.run(
            ["sh", "-c", f'printf "%s\\n" {line}'], env={"OPENAI_API_KEY": key}, capture_output=True, text=True
        )
        assert len(words.stdout.splitlines()) == sent and (key == "" or f"authorization: Bearer {key}" in words.stdout)
    assert site.get("/-/request/nobody.json").status_code == 404


PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


def test_pictures_are_shown_and_nothing_that_runs(tmp_path: Path) -> None:
    def part(mime: str, content: bytes) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{base64.b64encode(content).decode()}"}}

    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'>" + b" " * 600 + b"</svg>"
    with Captures(tmp_path) as captures:
        parts = [part("image/png", PICTURE), part("image/svg+xml", svg), part("text/html", b"<script>alert(1)</script>" * 40)]
        uid = captures.exchange([{"role": "user", "content": parts}], "nice")
        captures.store()
        with serve(captures.db, tmp_path / "log") as server:
            text = server.get(f"/-/transcript/{uid}").text
            (shown,) = re.findall(r'<img class="picture" src="([^"]+)"', text)
            answer = server.http.get(httpx.URL(f"{server.url}/-/transcript/{uid}").join(shown))
            assert (answer.content, answer.headers["content-type"]) == (PICTURE, "image/png")
            assert answer.headers["content-security-policy"] == security.PICTURE_POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            others = re.findall(r'<a href="(../attachment/[^"]+)">download', text)
            assert len(others) == 2
            for href in others:
                answer = server.http.get(httpx.URL(f"{server.url}/-/transcript/{uid}").join(href))
                assert answer.headers["content-type"] == "application/octet-stream"
                assert answer.headers["content-disposition"].startswith("attachment;")
                assert answer.headers["content-security-policy"] == security.PICTURE_POLICY
            assert server.get("/-/attachment/" + "0" * 32).status_code == 404
            assert "iVBOR" not in text


def test_off_loopback_there_is_a_login(site: Site, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    argv = command.datasette_argv(site.captures.db, "0.0.0.0", port, "open, sesame: ü")
    env = command.datasette_env(password="open, sesame: ü")
    assert "sesame" not in " ".join(argv)
    with (tmp_path / "log").open("w") as out:
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:

            def up() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    return client.get("/").status_code == 401
                except httpx.TransportError:
                    return False

            eventually(up, "Datasette does not start", 60)
            for path in (
                "/",
                "/capture/requests",
                "/-/dashboard",
                "/-/llmtap/llmtap.css",
                f"/-/request/{site.uids[0]}.json",
                "/-/versions.json",
            ):
                answer = client.get(path)
                assert (answer.status_code, "Basic" in answer.headers["www-authenticate"]) == (401, True), path
                assert "weather" not in answer.text
                assert client.get(path, auth=("any", "wrong")).status_code == 401
                assert client.get(path, auth=("any", "open, sesame: ü"), follow_redirects=True).status_code == 200, path
            named = client.get("/capture/requests", auth=("x", "open, sesame: ü"), headers={"host": "gpu1.lan"})
            assert named.status_code == 200
            ready = command.ready_url("127.0.0.1", port, "open, sesame: ü")
            assert httpx.get(ready, trust_env=False).status_code == 200
    finally:
        process.terminate()
        process.wait(20)


def test_a_backup_is_browsed_where_nothing_can_be_written(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    backup(site.captures.db, folder / "may.db")
    folder.chmod(0o555)
    try:
        with serve(folder / "may.db", tmp_path / "log") as server:
            assert server.get("/may/requests").status_code == 200
            assert "Have a good trip!" in server.get(f"/-/transcript/{site.uids[1]}").text
            assert server.get("/-/dashboard").status_code == 200
            assert server.rows("search", q="umbrella")
    finally:
        folder.chmod(0o755)
    assert [p.name for p in folder.iterdir()] == ["may.db"]
