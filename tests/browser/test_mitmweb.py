"""mitmweb on the gateway lane in a real browser, as docs/inspecting.md tells it: watch, hold, edit, let go, kill, replay."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from llmtap_launcher.datasette.command import WEB_VARIABLE
from llmtap_launcher.datasette.page import web_url
from support.browser import Browser, find
from support.gateway import Gateway, free_port, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find() is None, reason="no Chromium on the PATH (or in $CHROMIUM)")]
MODEL = "sim-small"
CHAT = "/v1/chat/completions"
KEY = "sk-the-backends-own-key"
MITMWEB = [sys.executable, "-c", "from mitmproxy.tools.main import mitmweb; mitmweb()"]

ROWS = "[...document.querySelectorAll('.flow-table tbody tr')].filter(row => row.querySelector('.col-path'))"


@dataclass
class Web:
    """mitmweb, its page, and the engine behind it."""

    sim: SimHandle
    gateway: Gateway
    page: Browser
    url: str

    def rows(self) -> list[str]:
        """The list of flows as the page shows it, newest last."""
        return [str(row) for row in self.page.run(f"{ROWS}.map(row => row.innerText.replace(/\\s+/g, ' '))")]

    def row(self, *words: str) -> str:
        """The last row, once it has all these words."""

        def there() -> str | None:
            rows = self.rows()
            return rows[-1] if rows and all(word in rows[-1] for word in words) else None

        return eventually(there, f"no row with {words}: {self.rows()}")

    def select_last(self) -> None:
        self.page.run(f"{ROWS}.at(-1).click()")
        eventually(lambda: self.page.run("!!document.querySelector('.flow-detail')"), "no details")

    def tab(self, name: str) -> None:
        found = f"[...document.querySelectorAll('.flow-detail .nav-tabs a')].find(a => a.innerText == '{name}')"
        eventually(lambda: self.page.run(f"!!{found}"), f"no tab {name}")  # a reply's comes with its head
        self.page.run(f"{found}.click()")

    def content(self, *words: str) -> str:
        """What the open tab shows of a body, once it has these words."""

        def there() -> str | None:
            text = self.page.run("document.querySelector('.flow-detail .contentview')?.innerText || ''")
            return str(text) if all(word in text for word in words) else None

        return eventually(there, f"no body with {words}")

    def button(self, name: str) -> None:
        """Clicks a button of the toolbar (of the Flow tab), or of the details."""
        self.page.run("[...document.querySelectorAll('header a')].find(a => a.innerText.trim() == 'Flow')?.click()")
        found = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() == '{name}' && !b.disabled)"
        eventually(lambda: self.page.run(f"!!{found}"), f"no button {name}")
        self.page.run(f"{found}.click()")

    def hold(self, filter: str) -> None:
        """Types a filter into the field "Intercept", as a user does."""
        self.page.run("[...document.querySelectorAll('header a')].find(a => a.innerText.trim() == 'Flow List').click()")
        field = "document.querySelector('input[placeholder=Intercept]')"
        eventually(lambda: self.page.run(f"!!{field}"), "no field for the filter")
        self.page.replace_text(field, filter)
        eventually(lambda: (self.option("intercept") or "") == filter, "the filter did not arrive")

    def flows(self) -> list[dict[str, Any]]:
        """The flows mitmweb has, newest last."""
        return list(self.page.run("fetch('./flows').then(r => r.json())"))

    def option(self, name: str) -> Any:
        return self.page.run(f"fetch('./options').then(r => r.json()).then(o => o['{name}'].value)")


class Request:
    """A chat request in a thread of its own."""

    def __init__(self, web: Web, prompt: str, **more: Any) -> None:
        self.reply: httpx.Response | None = None
        self.error: Exception | None = None
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}
        self._thread = threading.Thread(target=self._run, args=(web.gateway.url + CHAT, body))
        self._thread.start()

    def _run(self, url: str, body: dict[str, Any]) -> None:
        try:
            self.reply = httpx.post(url, json=body, timeout=60)
        except httpx.HTTPError as error:
            self.error = error

    def end(self) -> httpx.Response:
        self._thread.join(60)
        assert self.reply is not None, self.error
        return self.reply

    def cut(self) -> Exception:
        """The error its client got."""
        self._thread.join(60)
        assert self.error is not None, self.reply
        return self.error


def text_of(reply: httpx.Response) -> str:
    """The text of a streamed reply."""
    events = [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("mitmweb")
    port = free_port()
    options = ("--set", f"confdir={folder}", "--set", f"web_port={port}", "--set", "web_open_browser=false")
    executable = find()
    assert executable is not None
    with running_sim(model=MODEL, tokens_per_second=400, ttft_ms=2, api_key=KEY) as sim:
        config = {"backends": [{"name": "a", "url": sim.url, "api_key": KEY}]}
        with (
            running_gateway(
                folder / "data",
                config,
                command=MITMWEB,
                options=(*options, "--set", "web_password=tok", "--set", "llmtap_view_flows=12"),
            ) as gateway,
            Browser(executable, folder / "profile") as page,
        ):
            wait_up(gateway)
            page.open(f"http://127.0.0.1:{port}/")
            assert page.run("!!document.querySelector('input[type=password]')"), "no login page"
            page.open(f"http://127.0.0.1:{port}/?token=tok")
            eventually(lambda: "Capture" in page.run("document.body.innerText"), "not logged in")
            yield Web(sim, gateway, page, f"http://127.0.0.1:{port}")


def test_a_stream_is_in_the_list_and_readable_while_it_runs(web: Web) -> None:
    request = Request(web, "[[sim:tokens=160]] [[sim:tps=40]] tell me about rivers", stream=True)
    assert "%" not in web.row("chat/completions", "POST", "running", f"{MODEL}@a")
    web.select_last()
    web.tab("Request")
    assert "── user" in web.content("tell me about rivers", f"model {MODEL}, stream")
    web.tab("Response")
    assert "not complete" in web.content("── assistant"), "drawn while it streams"
    reply = request.end()
    web.row("200", "ok", "tok", "ttft")
    shown = web.content("(stop)" if '"stop"' in reply.text else "(length)")
    assert text_of(reply)[-40:] in shown.replace("\n", " ") or "Show more" in shown
    flow = next(f for f in web.flows() if f["comment"].startswith("ok"))
    stored = web.page.run(f"fetch('./flows/{flow['id']}/response/content.data').then(r => r.text())")
    assert stored == reply.text, "mitmweb has what the client got"
    assert KEY not in json.dumps(web.flows())


def test_a_held_request_is_edited_and_let_go(web: Web) -> None:
    web.hold("~u chat/completions & ~q")
    request = Request(web, "the original words", max_tokens=5)
    eventually(lambda: any(f["intercepted"] for f in web.flows()), "not held")
    web.select_last()
    web.tab("Request")
    web.content("the original words")
    web.button("Edit")
    editor = "document.querySelector('.flow-detail .cm-content')"
    eventually(lambda: "the original words" in web.page.run(f"{editor}?.innerText || ''"), "no editor")
    edited = {"model": MODEL, "messages": [{"role": "user", "content": "words of the editor"}], "max_tokens": 7}

    def typed() -> bool:  # again should the editor not yet have noticed what was selected
        web.page.replace_text(editor, json.dumps(edited))
        return bool(web.page.run(f"{editor}.innerText").strip() == json.dumps(edited))

    eventually(typed, "not typed", every_s=0.2)
    web.button("Done")
    web.content("words of the editor")
    assert not [r for r in web.sim.requests(CHAT) if "original" in json.dumps(r["body"])]
    web.button("Resume")
    reply = request.end()
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] <= 7
    (seen,) = [r for r in web.sim.requests(CHAT) if "words of the editor" in json.dumps(r["body"])]
    assert seen["headers"]["authorization"] == f"Bearer {KEY}"
    web.hold("")
    _, end = web.gateway.exchange(reply.headers["x-request-id"])
    assert end["outcome"] == "ok"


def test_a_held_request_is_killed(web: Web) -> None:
    web.hold("~u chat/completions & ~q")
    before = len(web.sim.requests(CHAT))
    request = Request(web, "never to arrive")
    eventually(lambda: any(f["intercepted"] for f in web.flows()), "not held")
    web.select_last()
    web.button("Abort")
    assert isinstance(request.cut(), httpx.RemoteProtocolError | httpx.ReadError)
    web.hold("")
    begin, end = web.gateway.last()
    assert "never to arrive" in json.dumps(begin["body"]) and end["outcome"] == "rejected" and end["error_type"] == "rejected"
    assert len(web.sim.requests(CHAT)) == before
    web.row("rejected")


def test_a_running_stream_is_killed(web: Web) -> None:
    request = Request(web, "[[sim:tokens=2000]] [[sim:tps=20]] too long", stream=True)
    web.row("running")
    # the button is for held ones; the key X is for all that is under way
    web.page.run("window.dispatchEvent(new KeyboardEvent('keydown', {key: 'X'}))")
    request.cut()
    _, end = web.gateway.last()
    assert end["outcome"] == "rejected"
    eventually(lambda: web.sim.state()["running"] == 0, "the engine goes on")


def test_a_finished_request_is_replayed(web: Web) -> None:
    first = Request(web, "once more please", max_tokens=6).end()
    web.row("ok", "6 tok" if first.json()["usage"]["completion_tokens"] == 6 else "tok")
    begun = {r["uid"] for r in web.gateway.records() if r["t"] == "begin"}
    web.select_last()
    web.button("Replay")
    (again,) = eventually(
        lambda: [r for r in web.gateway.records() if r["t"] == "begin" and r["uid"] not in begun], "nothing captured"
    )
    _, end = web.gateway.exchange(again["uid"])
    assert end["outcome"] == "ok" and "once more please" in json.dumps(again["body"])
    _, original = web.gateway.exchange(first.headers["x-request-id"])
    assert end["summary"]["choices"][0]["content"] == original["summary"]["choices"][0]["content"]
    assert KEY not in json.dumps(web.flows())


@pytest.mark.parametrize("own", [None, 'trip-1/"&(2)\\#%.*', "trip"])
def test_the_link_of_a_transcript_leads_to_its_request_alone(web: Web, monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    headers = {} if own is None else {"x-request-id": own}
    others = {} if own is None else {"x-request-id": f"{own}-other"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "find me"}], "max_tokens": 4}
    replies = [httpx.post(web.gateway.url + CHAT, json=body, headers=headers if n == 1 else others) for n in range(3)]
    wanted = replies[1].headers["x-request-id"]
    (begin,) = [r for r in web.gateway.records() if r["t"] == "begin" and wanted in (r["uid"], r.get("request_id"))][-1:]
    monkeypatch.setenv(WEB_VARIABLE, web.url)
    try:
        web.page.open("about:blank")  # only the part behind the # would change: no page is loaded for that
        web.page.open(web_url({"uid": begin["uid"], "request_id": begin.get("request_id")}))
        eventually(lambda: len(web.rows()) == 1, f"not one row: {web.rows()}")
        web.select_last()
        shown = str(web.page.run("location.hash"))
        (flow,) = [f for f in web.flows() if ["x-request-id", wanted] in f.get("response", {}).get("headers", [])]
        assert flow["id"] in shown
    finally:
        web.page.open("about:blank")
        web.page.open(web.url)
        eventually(lambda: len(web.rows()) > 1, "the list is not whole again")


def test_polls_do_not_stay_in_the_list_and_neither_do_the_oldest(web: Web) -> None:
    for path in ("/health", "/metrics", "/health/ready", "/v1/models"):
        assert httpx.get(web.gateway.url + path).status_code == 200

    with httpx.Client(base_url=web.gateway.url) as client:
        for i in range(15):
            body = {"model": MODEL, "messages": [{"role": "user", "content": f"number {i}"}], "max_tokens": 1}
            assert client.post(CHAT, json=body).status_code == 200
    eventually(lambda: len(web.flows()) == 12 and {f["request"]["path"] for f in web.flows()} == {CHAT}, "too long")
    eventually(lambda: len(web.rows()) <= 12, "the page has not followed")
    assert web.flows()[-1]["comment"].startswith("ok")
    assert not [line for line in web.page.logged if "rror" in line and "403" not in line], web.page.logged
