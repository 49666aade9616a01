"""`/metrics/backends`: what the backends say of themselves, in one page, each sample with a label `backend`.

Backends are asked at the same time, each in a thread, for at most `TOTAL_S` and `MAX_BYTES`; parsing happens there too. One that
is down, slow, huge or broken costs only its own part. Scrapers that ask while an answer is being made share it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import httpx

from llmtap.metrics.exposition import Parsed, escaped, merge, parse
from llmtap.policy.backends import Backend, Backends

READ_S = 2.0
TOTAL_S = 5.0
MAX_BYTES = 16 * 1024 * 1024
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OWN = {
    "llmtap_backend_scrape_up": "1 when the backend's metrics could be read.",
    "llmtap_backend_scrape_seconds": "Time that took.",
    "llmtap_backend_scrape_bad_lines": "Lines of it that were left out.",
}


@dataclass(slots=True)
class Scraped:
    """What came of asking one backend. `error`: in a few words, None when it went well."""

    parsed: Parsed = field(default_factory=Parsed)
    seconds: float = 0.0
    error: str | None = None


class BackendMetrics:
    """The page. Use on one event loop."""

    def __init__(self, backends: Backends, total_s: float = TOTAL_S, max_bytes: int = MAX_BYTES) -> None:
        self._backends = backends
        self._total_s = total_s
        self._max_bytes = max_bytes
        self._asking: asyncio.Task[bytes] | None = None
        self._questions: dict[str, asyncio.Future[Scraped]] = {}

    async def page(self) -> bytes:
        """The merged metrics of all backends, in the text format. Raises nothing for what a backend does."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._page(), name="llmtap metrics of the backends")
        return await asyncio.shield(self._asking)  # one scraper's leaving is not the others' end

    async def _page(self) -> bytes:
        backends = list(self._backends)
        questions = self._questions
        for backend in backends:
            # one that trickles header bytes for ever gets no second thread
            if backend.name not in questions or questions[backend.name].done():
                questions[backend.name] = asyncio.ensure_future(asyncio.to_thread(self._scrape, backend))
        if questions:
            await asyncio.wait(questions.values(), timeout=self._total_s + READ_S)
        answers = {
            name: question.result() if question.done() else Scraped(seconds=self._total_s + READ_S, error="too slow")
            for name, question in questions.items()
        }
        return await asyncio.to_thread(render, answers)

    def _scrape(self, backend: Backend) -> Scraped:
        started = time.monotonic()
        try:
            text = self._fetch(backend, started + self._total_s)
            return Scraped(parse(text), time.monotonic() - started)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return Scraped(Parsed(), time.monotonic() - started, str(error) or type(error).__name__)

    def _fetch(self, backend: Backend, deadline: float) -> str:
        headers = {"accept": "text/plain;version=0.0.4", "accept-encoding": "identity"}
        if backend.api_key:
            headers["authorization"] = f"Bearer {backend.api_key}"
        body = bytearray()
        base = "http://localhost" if backend.uds is not None else backend.url
        transport = httpx.HTTPTransport(uds=backend.uds) if backend.uds is not None else None
        timeout = httpx.Timeout(min(READ_S, self._total_s))
        with (
            httpx.Client(timeout=timeout, trust_env=False, transport=transport) as client,
            client.stream("GET", f"{base}/metrics", headers=headers) as answer,
        ):
            if answer.status_code != 200:
                raise ValueError(f"/metrics answers {answer.status_code}")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("compressed, which was not asked for")
            for piece in answer.iter_raw():
                body += piece
                if len(body) > self._max_bytes:
                    raise ValueError(f"more than {self._max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise ValueError("too slow")
        return body.decode("utf-8", "replace")


def render(answers: dict[str, Scraped]) -> bytes:
    """The page of these answers."""
    lines: list[str] = []
    for name, text in _OWN.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        for backend, answer in answers.items():
            value = {
                "llmtap_backend_scrape_up": float(answer.error is None),
                "llmtap_backend_scrape_seconds": answer.seconds,
            }.get(name, float(answer.parsed.bad_lines))
            lines.append(f'{name}{{backend="{escaped(backend)}"}} {value!r}')
    lines += merge({name: answer.parsed for name, answer in answers.items()}, "backend", _OWN)
    return ("\n".join(lines) + "\n").encode()
