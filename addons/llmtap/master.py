"""`python -m llmtap.master --config FILE`: the gateway alone, what `llmtap up` runs.

The same addon and the same proxy mode as under `mitmdump -s addons/gateway.py`, in a mitmproxy that has only what they need, on
uvloop where it is installed. Stock mitmdump's two dozen addons each get a call for every hook of every request; none of them does
anything for a gateway. For looking into live traffic run mitmweb (`llmtap up --web`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import signal
import sys
from collections.abc import Callable

from mitmproxy.addons import errorcheck, next_layer, proxyserver
from mitmproxy.master import Master
from mitmproxy.options import Options

from llmtap.chain import Chain
from llmtap.lane import uvloop_loop_factory

#: what `--say-ready` prints
READY = "llmtap.master: the port is open"


class Listening:
    """Prints a line once the port is open: where several processes share one, no answer on it says whose it is. To be the last
    addon: its hook comes after the one that opens the port."""

    def __init__(self, server: proxyserver.Proxyserver) -> None:
        self._server = server

    def running(self) -> None:
        # a port that cannot be had is logged as an error, which ends the start
        if any(instance.is_running for instance in self._server.servers):
            print(READY, flush=True)


async def serve(config: str, confdir: str | None, shared_metrics: str = "", say_ready: bool = False, launcher: str = "") -> None:
    """Run until SIGTERM or SIGINT. Raises SystemExit(1), its reason logged, when it cannot start.

    `shared_metrics`, `say_ready`: for one of several on one port, see `llmtap.metrics.workers` and `Listening`.
    `launcher`: the folder with the sockets of the launcher that runs it.
    """
    logging.getLogger().setLevel(logging.INFO)
    options = Options()
    master = Master(options, with_termlog=True)
    chain = Chain()
    # no listener before the configuration says where: mitmproxy's default would be an open proxy
    options.update(server=False, **({"confdir": confdir} if confdir else {}))
    # the layer chooser is never asked here; mitmproxy warns where there is none
    server = proxyserver.Proxyserver()
    master.addons.add(server, next_layer.NextLayer(), errorcheck.ErrorCheck(), chain)
    if say_ready:
        master.addons.add(Listening(server))
    options.update(llmtap_config=config, llmtap_writer=False, llmtap_shared_metrics=shared_metrics, llmtap_launcher=launcher)
    if chain.ready:
        options.update(server=True)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, master.shutdown)
    # what exists now stays: the collector need not look at it again
    gc.collect()
    gc.freeze()
    collecting = asyncio.create_task(collect_when_idle(lambda: chain.in_flight), name="llmtap gc")
    try:
        await master.run()
    finally:
        collecting.cancel()


def keep_memory() -> None:
    """Let glibc keep up to 64 MB of freed memory. It would give a long prompt's back to the system after each request and
    fetch it again for the next, page fault by page fault: a tenth of what such a request costs. No glibc: nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_TOP_PAD, 4 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


#: no full collection by itself; the young ones (fractions of a millisecond) stay as they are
_GC = (2000, 5, 1_000_000)


async def collect_when_idle(in_flight: Callable[[], int], every_s: float = 20.0, patience: int = 30) -> None:
    """Full garbage collections at moments when few wait for us.

    One with 4,000 streams open stops everything for 0.3 to 0.6 s (measured), and finds next to nothing: exchanges and
    connections end without reference cycles. What other people's addons leave goes when the gateway is (nearly) idle, at
    the latest after `patience` times `every_s` seconds.
    """
    gc.set_threshold(*_GC)
    waited = 0
    while True:
        await asyncio.sleep(every_s)
        waited += 1
        if in_flight() <= _FEW or waited >= patience:
            waited = 0
            gc.collect()


#: requests in flight at which a pause of some milliseconds does no harm
_FEW = 8


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, else None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    del uvloop
    return uvloop_loop_factory


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llmtap.master", description="The llmtap gateway without mitmproxy's tools.")
    parser.add_argument("--config", required=True, metavar="FILE", help="configuration file (llmtap.yaml)")
    parser.add_argument("--confdir", metavar="DIR", help="mitmproxy's folder for certificates")
    parser.add_argument(
        "--shared-metrics", default="", metavar="DIR", help="folder in which gateways on one port put their metrics together"
    )
    parser.add_argument("--say-ready", action="store_true", help="print a line once the port is open")
    parser.add_argument("--launcher", metavar="DIR", default="", help="folder with the sockets of the launcher")
    arguments = parser.parse_args(argv)
    keep_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(
                serve(arguments.config, arguments.confdir, arguments.shared_metrics, arguments.say_ready, arguments.launcher)
            )
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
