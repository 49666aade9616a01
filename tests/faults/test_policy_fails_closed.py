"""An exception inside any policy step is a 500 to the client, and no backend hears of the request. In the gateway mode and in
a stock one."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim

pytestmark = pytest.mark.faults
MODEL, SECRET = "sim-small", "secret-a"
#: every policy step there is; `test_none_is_missing` compares
STEPS = [
    "auth.Auth.admit",
    "auth.Auth.on_requestheaders",
    "auth.Auth.on_request",
    "cors.Cors.preflight",
    "cors.Cors.origin",
    "transforms.Transforms.on_request",
    "filters.Filters.on_request",
    "routing.Routing.on_requestheaders",
    "routing.Routing.on_request",
    "budgets.Budgets.on_requestheaders",
    "budgets.Budgets.on_request",
    "limits.Limits.on_requestheaders",
    "limits.Limits.on_request",
    "cache.Cache.on_request",
    "single_flight.SingleFlight.on_request",
    "batching.Batching.on_request",
    "queueing.Queueing.on_request",
]
#: the gateway's script, with every step made to raise while the file `broken` names it
SCRIPT = """
import importlib
from pathlib import Path

broken = Path({broken!r})

def breakable(name):
    module, cls, method = name.split(".")
    owner = getattr(importlib.import_module("llmtap." + module), cls)
    original = getattr(owner, method)

    def wrapped(self, *args, **kwargs):
        if broken.read_text() == name:
            raise RuntimeError("planted in " + name)
        return original(self, *args, **kwargs)

    setattr(owner, method, wrapped)

for name in {steps!r}:
    breakable(name)

from llmtap.chain import gateway

addons = [gateway()]
"""


def config(sim: SimHandle) -> dict[str, Any]:
    key = {
        "name": "a",
        "key_sha256": sha256(SECRET.encode()).hexdigest(),
        "models": [MODEL],
        "max_concurrency": 9,
        "budget_usd": 9,
    }
    on = {"enabled": True}
    return {
        "server": {"cors_origins": ["*"]},
        "backends": [{"name": "a", "url": sim.url}],
        "auth": {"enabled": True, "keys": [key]},
        "rate_limit": {"enabled": True, "default_limit": 10_000, "tokens_per_minute": 10_000_000},
        "cache": on,
        "single_flight": on,
        "batching": {"enabled": True, "max_wait_ms": 1},
        "filters": [{"max_tokens": 100}],
        "capture": {"enabled": True},
        "logging": {"request_log": False},
    }


@pytest.fixture(scope="module", params=["gateway", "reverse"])
def broken_ones(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, SimHandle, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    broken = folder / "broken"
    broken.write_text("")
    script = folder / "breakable.py"
    script.write_text(SCRIPT.format(broken=str(broken), steps=STEPS))
    with running_sim(model=MODEL, ttft_ms=0) as sim:
        mode = f"reverse:{sim.url}" if request.param == "reverse" else None
        with running_gateway(folder / "data", config(sim), mode=mode, script=script) as gateway:
            wait_up(gateway)
            yield gateway, sim, broken


def ask(gateway: Gateway, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": "let me in", "max_tokens": 3, **more}
    headers = {"authorization": f"Bearer {SECRET}", "origin": "https://app.example.org"}
    return httpx.post(f"{gateway.url}/v1/completions", json=body, headers=headers)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("stream", [False, True])
def test_no_backend_hears_of_it(broken_ones: tuple[Gateway, SimHandle, Path], step: str, stream: bool) -> None:
    gateway, sim, broken = broken_ones
    before = len(sim.requests("/v1/completions"))
    broken.write_text(step)
    try:
        reply = ask(gateway, stream=stream)
    finally:
        broken.write_text("")
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal_error" and "planted" not in reply.text
    assert len(sim.requests("/v1/completions")) == before
    well = ask(gateway, stream=stream)
    assert well.status_code == 200, "and afterwards all is well"


def test_none_is_missing(broken_ones: tuple[Gateway, SimHandle, Path]) -> None:
    """The steps of a gateway with everything on are those that were broken."""
    from llmtap.assembly import Gateway as Assembled
    from llmtap.core.config import Config

    gateway, sim, _ = broken_ones
    assembled = Assembled(Config.model_validate(config(sim) | {"capture": {"enabled": False}}), own_writer=False)
    found = {
        f"{type(step.call.__self__).__module__.removeprefix('llmtap.')}.{type(step.call.__self__).__name__}.{phase}"  # type: ignore[attr-defined]
        for phase in ("on_requestheaders", "on_request")
        for step in assembled.steps[phase]
        if step.kind == "policy"
    }
    assert found == {step for step in STEPS if ".on_" in step}
    assert gateway.process.poll() is None
