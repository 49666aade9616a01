import asyncio
import socket

import pytest
from mitmproxy.proxy.mode_specs import ProxyMode

from llmtap.lane.mode import GatewayMode, default_mode
from support.lane import running_lane, until


def test_specifications() -> None:
    plain = GatewayMode.parse(default_mode("127.0.0.1", 8000))
    assert (plain.listen_host(), plain.listen_port(), plain.upstream) == ("127.0.0.1", 8000, None)
    six = GatewayMode.parse(default_mode("::1", 8000))
    assert (six.listen_host(), six.listen_port()) == ("::1", 8000)
    to = GatewayMode.parse(default_mode("127.0.0.1", 8000, "http://10.0.0.1:8081"))
    assert (to.upstream, to.listen_port()) == (("http", "10.0.0.1", 8081), 8000)
    assert GatewayMode.parse("gateway:https://x@1").upstream == ("https", "x", 443)
    assert ProxyMode.parse("gateway").type_name == "gateway"


@pytest.mark.parametrize("spec", ["gateway:tcp://x:1@1", "gateway:@@1", "gateway:http://x:99999@1"])
def test_nonsense_is_refused(spec: str) -> None:
    with pytest.raises(ValueError):
        ProxyMode.parse(spec)


async def test_the_instance_says_where_it_listens_and_stops() -> None:
    async with running_lane() as lane:
        (instance,) = lane.master.addons.get("proxyserver").servers
        assert instance.is_running and instance.listen_addrs == (("127.0.0.1", lane.port),)
        assert instance.to_json()["type"] == "gateway"
        with pytest.raises(AssertionError):
            instance.make_top_layer(None)
        await instance.stop()
        assert not instance.is_running and instance.listen_addrs == ()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", lane.port)


async def test_an_address_in_use_is_said_plainly(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with running_lane() as lane:
            lane.master.options.update(mode=[default_mode("127.0.0.1", port)])
            await until(lambda: f"cannot listen on 127.0.0.1:{port}" in caplog.text)
            assert not [i for i in lane.master.addons.get("proxyserver").servers if i.is_running]
