"""Runs one simulated server: socket, uvicorn, signals, and going off the network on demand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Generator

import uvicorn

from .app import create_app
from .connection import SimProtocol
from .faults import Rule
from .simulation import Settings, Simulation, is_outage

#: vLLM closes a connection that was idle for so long
_KEEP_ALIVE_S = 5
_BACKLOG = 2048


class ListenError(Exception):
    """The address cannot be listened on; `str()` is one line for the user."""


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket, not yet listening. Raises ListenError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ListenError(f"{host} is not an address of this machine ({error}); see --host") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # two sockets may be bound under SO_REUSEADDR as long as neither listens: only listening finds out
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port (0: any free one)") from None
    return sock


class SimServer(uvicorn.Server):
    """uvicorn with its own idea of signals, and an off switch for the listening socket."""

    def __init__(self, config: uvicorn.Config, sim: Simulation, sock: socket.socket) -> None:
        super().__init__(config)
        self._sim = sim
        self._address = sock.getsockname()
        self._family = sock.family
        self._reserved: socket.socket | None = None
        self._back: asyncio.TimerHandle | None = None
        sim.refuse, sim.accept = self.refuse, self.accept
        self._startup_refusal: Rule | None = next((r for r in sim.settings.rules if is_outage(r)), None)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ends the server without ending the process by the same signal, as uvicorn would: exit status 0."""
        loop = asyncio.get_running_loop()
        for number in uvicorn.server.HANDLED_SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in uvicorn.server.HANDLED_SIGNALS:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, says so on standard output, and begins with an outage if one was asked for."""
        await super().startup(sockets)
        host, port = self._address[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"llmtap sim: {', '.join(self._sim.settings.models)} on http://{shown}:{port}", flush=True)
        if self._startup_refusal is not None:
            self.refuse(self._startup_refusal.fault.seconds)

    def refuse(self, seconds: float) -> None:
        """Closes the listening socket and idle connections; listens again after `seconds`, unless infinite."""
        self._cancel_return()
        if not self._sim.refusing:
            self._sim.refusing = True
            for server in self.servers:
                server.close()
            self.servers.clear()
            # bound but not listening: connections are refused, and nobody else gets the port
            self._reserved = socket.socket(self._family, socket.SOCK_STREAM)
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind(self._address)
            # Linux lets two sockets share a port that nobody listens on, if both say SO_REUSEADDR when the second one binds
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            for connection in list(self.server_state.connections):
                assert isinstance(connection, SimProtocol)
                if connection.cycle is None or connection.cycle.response_complete:
                    connection.transport.close()
        if seconds != float("inf"):
            self._back = asyncio.get_running_loop().call_later(seconds, self.accept)

    def accept(self) -> None:
        """Listens again after `refuse`."""
        self._cancel_return()
        if self._sim.refusing and self._reserved is not None:
            self._sim.refusing = False
            sock, self._reserved = self._reserved, None
            # connections of before the outage still have the port: listening beside them takes the option again
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            self._opening = asyncio.ensure_future(self._listen(sock))

    async def _listen(self, sock: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return SimProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        self.servers.append(await asyncio.get_running_loop().create_server(protocol, sock=sock, backlog=_BACKLOG))

    def _cancel_return(self) -> None:
        if self._back is not None:
            self._back.cancel()
            self._back = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets streams in flight finish within the grace, then closes them."""
        self._cancel_return()
        if self._reserved is not None:
            self._reserved.close()
        await super().shutdown(sockets)


async def serve(settings: Settings, sock: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT."""
    sim = Simulation.create(settings, asyncio.get_running_loop())
    config = uvicorn.Config(
        create_app(sim),
        http=SimProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        # what goes wrong on purpose is not news, and what goes wrong otherwise is told by Front
        log_level="critical",
        access_log=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(0, round(settings.shutdown_timeout_s)),
    )
    await SimServer(config, sim, sock).serve(sockets=[sock])


def run(settings: Settings) -> int:
    """Runs a server to its end; the exit status."""
    try:
        sock = bind(settings.host, settings.port)
    except ListenError as error:
        print(f"llmtap sim: {error}", file=sys.stderr)
        return 1
    try:
        import uvloop
    except ImportError:  # pragma: no cover - not available on Windows
        loop_factory = asyncio.new_event_loop
    else:
        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(settings, sock))
    return 0
