"""What stands in for the chain while scripts fail, go and come back; under mitmproxy's own addon manager and script rules."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from mitmproxy import exceptions, hooks, http
from mitmproxy.proxy.layers.http import HttpRequestHeadersHook, HttpRequestHook
from mitmproxy.test import taddons, tflow

from llmtap.backstop import Backstop
from llmtap.chain import Chain, gateway


class Scripts:
    """As `ScriptLoader`: one element of the addon chain that holds the scripts."""

    name = "scripts"

    def __init__(self, *addons: Any) -> None:
        self.addons = list(addons)


@pytest.fixture
async def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    backends = [{"name": "a", "url": "http://127.0.0.1:9", "models": ["m"]}]
    config = {"backends": backends, "capture": {"enabled": False}, "logging": {"request_log": False}}
    (tmp_path / "llmtap.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("LLMTAP_CONFIG", str(tmp_path / "llmtap.yaml"))
    with taddons.context(loadcore=False) as context:
        options: list[tuple[str, type, Any]] = [
            ("connection_strategy", str, "lazy"),
            ("body_size_limit", str, "1m"),
            ("block_global", bool, True),
            ("onboarding", bool, True),
        ]
        for name, kind, value in options:
            if name not in context.options:
                context.options.add_option(name, kind, value, "")
        yield context
        context.master.addons.trigger(hooks.DoneHook())


def load(context: Any) -> Any:
    """What `Script.loadscript` does with `addons/gateway.py`."""
    script = types.SimpleNamespace(name="script", addons=[gateway()])
    context.master.addons.register(script)
    context.master.addons.invoke_addon_sync(script, hooks.ConfigureHook({"llmtap_config", "mode"}))
    return script


def live(body: bytes = b'{"model":"m","messages":[]}') -> http.HTTPFlow:
    flow = tflow.tflow(live=True)
    flow.request = http.Request.make("POST", "http://h/v1/chat/completions", body, {"content-type": "application/json"})
    return flow


async def head(context: Any, flow: http.HTTPFlow) -> http.HTTPFlow:
    await context.master.addons.trigger_event(HttpRequestHeadersHook(flow))
    return flow


async def test_a_reload_goes_on_with_the_same_chain(context: Any) -> None:
    scripts = Scripts()
    context.master.addons.add(scripts)
    script = load(context)
    scripts.addons = [script]
    chain: Chain = script.addons[0]
    running = await head(context, live())
    context.master.addons.remove(script)
    scripts.addons = []
    again = load(context)
    scripts.addons = [again]
    assert again.addons[0] is chain and running.response is None
    assert (await head(context, live())).response is None
    assert chain._exchanges[running].outcome == "open"


async def test_without_its_script_the_gateway_refuses_what_is_new_and_finishes_what_runs(context: Any) -> None:
    scripts = Scripts()
    context.master.addons.add(scripts)
    script = load(context)
    scripts.addons = [script]
    chain: Chain = script.addons[0]
    running = await head(context, live())
    context.master.addons.remove(script)
    scripts.addons = []
    refused = (await head(context, live())).response
    assert refused is not None and refused.status_code == 500 and b"not ready" in (refused.content or b"")
    await context.master.addons.trigger_event(HttpRequestHook(running))
    assert chain._exchanges[running].plan is not None and running.response is None


async def test_before_any_load_everything_is_refused(context: Any) -> None:
    """A script that calls `gateway()` and then fails."""
    gateway()
    refused = (await head(context, live())).response
    assert refused is not None and refused.status_code == 500


@pytest.mark.parametrize("error", [RuntimeError("on purpose"), exceptions.AddonHalt()])
@pytest.mark.parametrize("hook", ["requestheaders", "request"])
async def test_a_script_that_raises_before_us_skips_no_policy(context: Any, error: Exception, hook: str) -> None:
    def fail(flow: http.HTTPFlow) -> None:
        raise error

    culprit = types.SimpleNamespace(name="culprit", **{hook: fail})
    script = load(context)
    # its own element comes first, as scripts do
    context.master.addons.chain.insert(0, Scripts(culprit, script))
    flow = await head(context, live(b'{"model":"unknown","messages":[]}'))
    assert flow.response is None
    await context.master.addons.trigger_event(HttpRequestHook(flow))
    if isinstance(error, exceptions.AddonHalt) and hook == "request":
        # the script asked for the end of this event: without a plan the lane sends it nowhere
        assert flow not in script.addons[0]._plans
        return
    assert flow.response is not None and flow.response.status_code == 404


async def test_the_end_comes_once_and_in_any_order(context: Any) -> None:
    script = load(context)
    chain: Chain = script.addons[0]
    backstop = context.master.addons.get(Backstop.name)
    flow = await head(context, live())
    chain.done()
    assert chain._exchanges[flow].outcome == "open"
    backstop.done()
    assert chain._exchanges[flow].outcome == "lost"
    chain.done()
    backstop.done()
