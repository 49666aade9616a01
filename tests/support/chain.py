"""A chain under mitmproxy's test master, with one backend that is never asked; flows driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from mitmproxy import http
from mitmproxy.test import taddons, tflow

from llmtap.assembly import Gateway, Step, steps_of
from llmtap.chain import Chain
from llmtap.exchange import Exchange
from llmtap.spool.reader import read


class Recorder:
    """An observer that notes what happened."""

    name = "recorder"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.ended: list[Exchange] = []

    def on_requestheaders(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self.seen.append("requestheaders")

    def on_request(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self.seen.append("request")

    def on_finish(self, flow: http.HTTPFlow, ex: Exchange) -> None:
        self.seen.append("finish")
        self.ended.append(ex)


class Under:
    """A chain under mitmproxy's test master, with one backend that is never asked."""

    def __init__(self, chain: Chain, recorder: Recorder, data: Path) -> None:
        self.chain, self.recorder, self.data = chain, recorder, data

    @property
    def gateway(self) -> Gateway:
        assert self.chain._gateway is not None
        return self.chain._gateway

    def insert(self, phase: str, kind: Any, call: Any, name: str = "culprit") -> None:
        self.gateway.steps[phase].insert(0, Step(name, kind, call))

    def errors(self, addon: str, hook: str) -> float:
        return self.gateway.registry.get_sample_value("llmtap_hook_errors_total", {"addon": addon, "hook": hook}) or 0.0

    def records(self) -> list[dict[str, Any]]:
        return [
            orjson.loads(item)
            for path in sorted(self.data.glob("spool/*"))
            for _, item in read(path, 0)
            if isinstance(item, bytes)
        ]


@pytest.fixture
async def under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("LLMTAP_CONFIG",):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "llmtap.yaml"
    backends = [{"name": "a", "url": "http://127.0.0.1:9", "models": ["m"]}]
    config.write_text(
        yaml.safe_dump({"backends": backends, "capture": {"dir": str(tmp_path)}, "logging": {"request_log": False}})
    )
    chain = Chain()
    with taddons.context(chain, options=None, loadcore=False) as context:
        # options that mitmproxy's own addons declare, as far as the chain sets them
        kinds: dict[str, type] = {"connection_strategy": str, "block_global": bool, "onboarding": bool, "body_size_limit": str}
        for name, kind in kinds.items():
            if name not in context.options:
                context.options.add_option(name, kind, kind(), "test")
        context.configure(chain, llmtap_config=str(config), llmtap_writer=False)
        assert chain._gateway is not None
        recorder = Recorder()
        for phase, steps in steps_of([("observer", recorder)]).items():
            chain._gateway.steps[phase].extend(steps)
        yield Under(chain, recorder, tmp_path)
        chain.done()


def post(path: str = "/v1/chat/completions", body: bytes = b'{"model":"m","messages":[]}', **headers: str) -> http.HTTPFlow:
    flow = tflow.tflow()
    flow.request = http.Request.make("POST", f"http://gateway{path}", body, {"content-type": "application/json", **headers})
    flow.live = True
    return flow


def answered(flow: http.HTTPFlow, status: int = 200, body: bytes = b'{"choices":[]}') -> None:
    flow.response = http.Response.make(status, body, {"content-type": "application/json"})


async def run(under: Under, flow: http.HTTPFlow) -> None:
    """A flow from its head to its end, as mitmproxy drives it."""
    chain = under.chain
    chain.requestheaders(flow)
    waiting = chain.request(flow)
    if waiting is not None:
        await waiting
    if flow.response is None:
        answered(flow)
    waiting = chain.responseheaders(flow)
    if waiting is not None:
        await waiting
    chain.response(flow)
