"""The pages in a real browser: captured text runs nothing and loads nothing, and everything fits a phone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmtap.core.record import Choice, ToolCall
from support.browser import Browser, find
from support.captures import Captures, weather
from support.datasette_server import Server, serve

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find() is None, reason="no Chromium on the PATH (or in $CHROMIUM)")]

#: a server, the uids of a harmless conversation, and those of exchanges that carry one attack each, wherever text can be
type Site = tuple[Server, list[str], list[str]]

ROOT = Path(__file__).parents[2]
OWN = "document.documentElement.dataset.owned"


def attacks(beacon: str) -> list[str]:
    """Texts that take a page over where they are not escaped, or make it fetch `beacon`."""
    return [
        f"<script>{OWN}='script';alert('script')</script>",
        f"<img src=x onerror=\"{OWN}='img';alert('img')\"><img src='{beacon}/img'>",
        f"</script></title></textarea></pre></details><script>{OWN}='closed'</script>",
        f"<svg onload=\"{OWN}='svg'\"><animate onbegin=\"{OWN}='animate'\" attributeName=x dur=1s></svg>",
        f"<iframe src=\"javascript:parent.{OWN}='frame'\"></iframe><iframe src='{beacon}/frame'></iframe>",
        f"<a href=\"javascript:{OWN}='link'\" id=bait>click</a>",
        f"<style>@import '{beacon}/css';body{{background:url({beacon}/background)}}</style>",
        f"<link rel=stylesheet href='{beacon}/link'><meta http-equiv=refresh content='0;url={beacon}/refresh'>",
        f"![picture]({beacon}/markdown) \" onmouseover=\"{OWN}='attribute'\" x='",
        f"```<script>{OWN}='fence'</script>\n</pre><script>{OWN}='code'</script>\n```\n",
        f"javascript:{OWN}='cell'",
        "{{ 7 * 7 }} {% raw %} ${7*7} &lt;script&gt;",
    ]


class Beacon:
    """A server whose pages are the attacks themselves at `/raw/N`, and that remembers every other address asked for."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = b""
                _, raw, number = self.path.rpartition("/raw/")
                if raw and number.isdigit():
                    body = attacks(outer.url)[int(number)].encode()
                elif self.path != "/favicon.ico":
                    outer.hits.append(self.path)
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def beacon() -> Iterator[Beacon]:
    beacon = Beacon()
    yield beacon
    beacon.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, beacon: Beacon) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("captures")
    with Captures(folder) as captures:
        harmless = weather(captures)
        hostile = []
        for text in attacks(beacon.url):
            image = {"type": "image_url", "image_url": {"url": f"{beacon.url}/image_url"}}
            parts = [{"type": "text", "text": text}, image, {"type": text, text: text}]
            messages = [
                {"role": "system", "content": text},
                {"role": "user", "content": parts, "name": text},
                {
                    "role": "assistant",
                    "content": text,
                    "tool_calls": [{"id": text, "function": {"name": text, "arguments": text}}],
                },
                {"role": "tool", "tool_call_id": text, "content": text},
                {"role": text, "content": text},
                {"role": "user", "content": text},
            ]
            calls = [ToolCall(0, text, name=text, arguments=text)]
            reply = Choice(
                0,
                content=text,
                reasoning=text,
                refusal=text,
                tool_calls=calls,
                finish_reason=text,
            )
            names = ("model", "key_name", "user_agent", "session_hint", "request_id", "client_ip", "path", "endpoint")
            asked: dict[str, Any] = {name: text for name in names} | {
                "endpoint": "chat",
                "tags": [text],
                "metadata": {text: text},
                "tools": [{"type": text}],
                "top_k": text,
            }
            told = {"served": text, "backend": text, "error_type": text, "error_message": text, "status": 500}
            hostile.append(captures.exchange(messages, reply, asked=asked, outcome="upstream_error", deltas=[10, 20, 30], **told))
        captures.store()
        with serve(captures.db, folder / "log") as server:
            yield server, harmless, hostile


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find()
    assert executable is not None
    with Browser(executable, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def forget(browser: Browser, beacon: Beacon) -> None:
    browser.open("about:blank")  # what the last page still had under way is over
    for seen in (browser.dialogs, browser.logged, browser.requests, beacon.hits):
        seen.clear()


def owned(browser: Browser) -> Any:
    return browser.run(f"{OWN} || null")


def test_the_attacks_work_on_a_page_that_does_not_escape(browser: Browser, beacon: Beacon) -> None:
    """The control: without it the tests below could pass because an attack is broken."""
    forget(browser, beacon)
    taken = []
    for i in range(4):
        browser.open(f"{beacon.url}/raw/{i}")
        taken.append(owned(browser))
    assert taken[:3] == ["script", "img", "closed"] and taken[3] in ("svg", "animate")
    assert "script" in browser.dialogs
    for i in (4, 6, 7):
        browser.open(f"{beacon.url}/raw/{i}")
    assert {"/img", "/frame", "/css", "/link"} <= set(beacon.hits)


def views(uid: str) -> list[str]:
    return [
        "/capture/requests",
        "/capture/errors",
        "/capture/slow",
        "/capture/latency",
        "/capture/tokens_per_hour",
        "/capture/cost",
        "/capture/compare",
        "/capture/conversations",
        "/-/dashboard",
        "/-/dashboard?range=30d",
        "/capture/otel_spans",
        "/capture/search?q=owned",
        f"/-/transcript/{uid}",
        f"/capture/transcript?id={uid}",
        "/capture/exchanges",
        "/capture/bodies",
        "/capture?sql=select+text,+json+from+bodies",
    ]


@pytest.mark.parametrize("index", range(len(attacks(""))))
def test_captured_text_runs_nothing_and_loads_nothing(site: Site, browser: Browser, beacon: Beacon, index: int) -> None:
    server, _, hostile = site
    forget(browser, beacon)
    paths = views(hostile[index]) if index == 0 else [f"/-/transcript/{hostile[index]}"]
    for path in paths:
        browser.open(server.url + path)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert owned(browser) is None, path
        assert browser.run("document.querySelectorAll('img, iframe, object, embed, meta[http-equiv], #bait').length") == 0, path
    assert browser.dialogs == [] and beacon.hits == []
    assert all(url.startswith(server.url) for url in browser.requests), browser.requests


def test_hostile_text_is_readable_as_text(site: Site, browser: Browser, beacon: Beacon) -> None:
    server, _, hostile = site
    browser.open(f"{server.url}/-/transcript/{hostile[0]}")
    shown = browser.run("[...document.querySelectorAll('.msg .text')].map(e => e.textContent)")
    assert shown.count(attacks(beacon.url)[0]) >= 4


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_pages_fit_the_window_and_the_policy_hinders_none_of_them(
    site: Site, browser: Browser, beacon: Beacon, width: int, height: int, tmp_path: Path
) -> None:
    server, harmless, _ = site
    for path in [*views(harmless[1]), "/capture", "/capture/messages", "/capture/bodies/1", "/-/transcript/nope"]:
        forget(browser, beacon)
        browser.open(server.url + path, width, height)
        wide = browser.run("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
        assert [line for line in browser.logged if "404" not in line and "favicon" not in line] == [], path
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000


def test_a_reader_finds_the_way(site: Site, browser: Browser) -> None:
    """From the landing page into a transcript, on to the next turn, and to the previous one."""
    server, harmless, _ = site
    browser.open(server.url + "/?")
    assert browser.run("location.pathname") == "/capture/requests"
    href = browser.run(f"document.querySelector('a[href$=\"{harmless[1]}\"]').href")
    browser.open(href)
    assert browser.run("document.querySelector('h1').textContent").startswith("What is the weather")
    assert browser.run("document.querySelector('details.reasoning').open") is False
    browser.open(browser.run("document.querySelector('a[rel=next]').href"))
    assert browser.run("document.querySelector('h1').textContent") == "And in Oslo?"
    browser.open(browser.run("document.querySelector('a[rel=prev]').href"))
    assert browser.run("location.pathname") == f"/-/transcript/{harmless[1]}"


def test_opened_folds_stay_open_when_the_reader_clicks_elsewhere(site: Site, browser: Browser) -> None:
    server, harmless, _ = site
    browser.open(f"{server.url}/-/transcript/{harmless[1]}")
    browser.run("document.querySelector('details.reasoning').open = true")
    browser.run("document.querySelector('h1').click()")
    assert browser.run("document.querySelector('details.reasoning').open") is True


def test_datasettes_own_scripts_work_under_the_policy(site: Site, browser: Browser) -> None:
    server, _, _ = site
    browser.open(server.url + "/capture?sql=select+1")
    assert browser.run("document.querySelectorAll('.CodeMirror').length") == 1
    assert browser.run("document.querySelector('#sql-format').hidden") is False
    browser.open(server.url + "/capture/requests")
    assert browser.run("document.querySelectorAll('th svg.dropdown-menu-icon').length") > 5
    browser.run("document.querySelector('th[data-column=model] svg').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.run("getComputedStyle(document.querySelector('a.dropdown-facet')).display") != "none"


def test_the_script_for_the_pictures_of_the_documentation_works(tmp_path: Path) -> None:
    argv = [sys.executable, str(ROOT / "docs" / "screenshots.py"), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for name in ("requests.png", "transcript.png", "search.png", "dashboard.png", "conversations.png", "phone.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert 20_000 < (tmp_path / name).stat().st_size < 300_000
