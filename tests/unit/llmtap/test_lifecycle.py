"""The addon's own life: shutdown, and another configuration while requests run."""

from __future__ import annotations

import pytest
from mitmproxy import flow as mflow

from llmtap.assembly import Gateway
from llmtap.core.errors import ConfigError
from support.chain import Under, answered, post


async def test_shutdown_ends_what_is_open_as_lost(under: Under) -> None:
    flow = post()
    under.chain.requestheaders(flow)
    under.chain.request(flow)
    under.chain.done()
    flow.error = mflow.Error("Client disconnected.")
    under.chain.error(flow)
    assert [ex.outcome for ex in under.recorder.ended] == ["lost"]
    assert under.records()[-1]["outcome"] == "lost"


async def test_a_gateway_that_does_not_run_takes_no_other_configuration(under: Under) -> None:
    with pytest.raises(ConfigError, match="not running"):
        under.chain.reload(under.gateway.config)
    assert under.chain.reload_file() is False


async def test_what_began_before_ends_as_it_began(under: Under, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, old = under.chain, under.gateway
    chain._running = True
    flow = post()
    chain.requestheaders(flow)
    assert chain.request(flow) is None
    stopped: list[Gateway] = []
    monkeypatch.setattr(Gateway, "stop", lambda self, others=(): stopped.append(self))
    chain.reload(old.config.model_copy(update={"backends": ()}))
    assert under.gateway is not old and stopped == [] and old.after is under.gateway
    refused = post()
    chain.requestheaders(refused)
    assert chain.request(refused) is None
    assert refused.response is not None and refused.response.status_code == 503, "nobody is there for what is new"
    chain.response(refused)
    answered(flow)
    chain.responseheaders(flow)
    chain.response(flow)
    assert [ex.outcome for ex in under.recorder.ended] == ["ok"] and stopped == [old]
    monkeypatch.undo()
    old.health.stop()
    under.gateway.health.stop()
