import json

from mitmproxy import options
from mitmproxy.master import Master
from mitmproxy.test import tflow

from llmtap.core.errors import NoHealthyBackend
from llmtap.lane import LaneLimits, install
from llmtap.lane.lane import lane_of, plain_answer
from support.lane import echo, post, running_lane, upstream


def test_the_plain_answer() -> None:
    flow = tflow.tflow()
    flow.request.path = "/v1/chat/completions"
    answer = plain_answer(flow, NoHealthyBackend("none"))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    assert json.loads(answer.content or b"")["error"]["code"] == "no_healthy_backend"
    flow.request.path = "/api/chat"
    assert json.loads(plain_answer(flow, NoHealthyBackend("none")).content or b"") == {"error": "none"}


async def test_one_lane_a_mitmproxy_and_install_sets_it_anew() -> None:
    master, other = Master(options.Options()), Master(options.Options())
    lane = lane_of(master)
    assert lane_of(master) is lane and lane_of(other) is not lane
    plans: dict[object, object] = {}
    limits = LaneLimits(max_body_bytes=5)
    again = install(plans=plans, answer=plain_answer, limits=limits, reuse_port=True, master=master)  # type: ignore[arg-type]
    assert again is lane and lane.plans is plans and lane.limits is limits and lane.reuse_port
    install(plans=plans, answer=plain_answer, master=master)  # type: ignore[arg-type]
    assert lane.limits is limits


async def test_authorities_leave_out_the_default_port() -> None:
    lane = lane_of(Master(options.Options()))
    assert lane.authority(("http", "h", 80)) == b"h" and lane.authority(("https", "h", 443)) == b"h"
    assert lane.authority(("http", "h", 443)) == b"h:443" and lane.authority(("http", "::1", 8000)) == b"[::1]:8000"


async def test_the_host_header_is_kept_where_the_option_says_so() -> None:
    async with upstream(echo) as up, running_lane(default=up.port) as lane:
        await lane.ask(post(b"{}"))
        lane.master.options.update(keep_host_header=True)
        await lane.ask(post(b"{}"))
        assert [f.request.headers["host"] for f in lane.rec.flows] == [f"127.0.0.1:{up.port}", "gateway"]


async def test_draining_an_idle_lane_is_done_at_once() -> None:
    async with running_lane() as lane:
        await lane.lane.drain(60)
        assert lane.lane.connections == 0
