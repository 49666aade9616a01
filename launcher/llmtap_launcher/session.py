"""One run of `llmtap up`, from the first process to the last signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llmtap.core.config_watch import watch
from llmtap.core.errors import ConfigError, LlmtapError
from llmtap.core.sockets import CONTROL, MANAGEMENT

from .fleet import Fleet
from .gateway import web_url
from .gateway_link import GatewayLink
from .health import http_status, look
from .overview import facts as overview
from .plan import Setup, make_plan
from .process import Log, Process, State, log_to_stderr, port_taken
from .reconfigure import Source, waits_for_restart
from .report import print_table, try_line, up_line, url_rows
from .runtime import RunFolder
from .supervisor import Supervisor

if TYPE_CHECKING:
    from .api.server import ApiServer

#: beyond one health interval of the gateway, how long the table waits for it to find its first backend
HEALTH_PATIENCE_S = 5.0
WEB_PATIENCE_S = 10.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Session:
    """Runs what a Setup says until a signal comes. `say` gets the user's lines (stdout), `log` everything else."""

    def __init__(
        self,
        setup: Setup,
        run: str,
        *,
        say: Callable[[str], None] = print,
        log: Log = log_to_stderr,
        source: Source | None = None,
    ) -> None:
        """`source`: the file to watch for changes, None when there is none."""
        self._setup, self._run_id, self._say, self._log = setup, run, say, log
        self._source = source
        self._stop = asyncio.Event()
        self._again = asyncio.Event()
        self._loading = asyncio.Lock()
        self._shown = False
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """Start, show the table, wait for SIGINT, SIGTERM or SIGHUP, stop. Raises LlmtapError when the gateway does not start."""
        config = self._setup.config
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled)
        with RunFolder(config.capture.dir) as folder:
            left = await asyncio.to_thread(folder.clear_leftovers)
            if left:
                self._log("llmtap", f"ended {left} processes that an earlier run had left behind")
            # asked before anything is started; the gateway's own start asks again
            if port_taken(config.server.host, config.server.port):
                raise LlmtapError(f"port {config.server.port} is in use; choose another with --port")
            plan = make_plan(self._setup, folder, self._run_id, os.environ)
            supervisor = Supervisor(plan, folder, self._run_id, log=self._log, pid=os.getpid(), on_change=self._changed)
            link = GatewayLink()
            fleet = Fleet(self._setup, supervisor, link, run=self._run_id, env=os.environ, folder=folder.path, log=self._log)
            api = self._api(fleet, link, folder)
            try:
                await link.start(folder.sockets / CONTROL)
                await fleet.start()
                await api.start(folder.sockets / MANAGEMENT)
                watching = self._watch_file(fleet)
                try:
                    await self._through(supervisor, fleet)
                finally:
                    if watching is not None:
                        watching.cancel()
            finally:
                await fleet.close()
                await api.close()
                await link.close()

    def _api(self, fleet: Fleet, link: GatewayLink, folder: RunFolder) -> ApiServer:
        # FastAPI takes a third of a second to import: only for a run
        from .api.app import create_app
        from .api.desk import Desk
        from .api.feedback import Feedback, by_gateway
        from .api.server import ApiServer

        config = self._setup.config
        feedback = Feedback(config.spool_dir, config.db_path, by_gateway) if config.capture.enabled else None

        async def status() -> dict[str, Any]:
            return overview(fleet.config, folder.read(), None)

        desk = Desk(fleet, link, status, partial(self._reload, fleet))
        return ApiServer(create_app(desk, feedback), at_end=feedback.close if feedback is not None else lambda: None)

    def _watch_file(self, fleet: Fleet) -> asyncio.Task[None] | None:
        source = self._source
        if source is None:
            return None

        def changed() -> None:
            self._reloading = asyncio.create_task(self._file_changed(fleet))

        return asyncio.create_task(watch(source.path, changed))

    async def _file_changed(self, fleet: Fleet) -> None:
        try:
            waiting = await self._reload(fleet)
        except ConfigError as error:
            for line in str(error).splitlines():
                self._log("llmtap", f"the changed configuration is not used: {line}")
            return
        if waiting:
            self._log("llmtap", f"the configuration has changed; waits for a restart: {', '.join(waiting)}")

    async def _reload(self, fleet: Fleet) -> list[str] | None:
        """Read the file again. Returns what has to wait for a restart, None without a file. Raises ConfigError."""
        source = self._source
        if source is None:
            return None
        async with self._loading:
            fresh = await asyncio.to_thread(source.again)
            await fleet.reload(fresh)
            return waits_for_restart(source.read, fresh)

    async def _through(self, supervisor: Supervisor, fleet: Fleet) -> None:
        starting = asyncio.create_task(self._start(supervisor))
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        hurrying: asyncio.Task[None] | None = None
        try:
            if starting.done():
                starting.result()  # raises what the start raised; all is stopped then
                await stop
            else:
                starting.cancel()
            again = asyncio.create_task(self._hurry(supervisor))
            hurrying = again
            self._say("stopping; once more to stop at once")
            await fleet.close()
            if not starting.done():
                with suppress(asyncio.CancelledError):
                    await starting  # its own way out stops everything
            await supervisor.stop()
            self._say("stopped")
        finally:
            for task in (stop, hurrying):
                if task is not None:
                    task.cancel()

    async def _start(self, supervisor: Supervisor) -> None:
        await supervisor.start()
        if self._setup.web_port is not None:
            supervisor.extra["urls"] = {**supervisor.plan.facts["urls"], "web": await self._web(supervisor)}
        seen = await self._look()
        await self._first_health(supervisor)
        supervisor.save()
        self._show(supervisor, seen)

    async def _hurry(self, supervisor: Supervisor) -> None:
        await self._again.wait()
        await supervisor.hurried()

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._again.set()
        self._stop.set()

    # what the user sees

    def _show(self, supervisor: Supervisor, seen: dict[str, str]) -> None:
        state = supervisor.state()
        sys.stdout.flush()
        self._say("")
        print_table(sys.stdout, url_rows(state, seen))
        self._say(f"\ndata folder: {state['data']}")
        model = next((backend["model"] for backend in state["backends"] if backend["model"]), None)
        model = model or next((words.partition(", ")[2].split(" ")[0] for words in seen.values() if ", " in words), None)
        if state["backends"]:
            self._say(f"try: {try_line(state['urls']['openai'], model or 'MODEL')}")
        else:
            self._say(f"no backend yet; start one: {up_line(state['urls']['gateway'])}")
        for name in sorted(supervisor.plan.slow):
            process = next(process for process in supervisor.backends if process.name == name)
            if process.state is State.STARTING:
                self._say(f"backend {name} is loading its model; requests for it are answered 503 until it is ready")
        self._say("Ctrl-C stops everything")
        sys.stdout.flush()
        self._shown = True

    def _changed(self, process: Process) -> None:
        """After the table: what becomes ready or fails is told in one line."""
        now = time.monotonic()
        if process.state is State.STARTING:
            self._since.setdefault(process.name, now)
        elif self._shown and process.state is State.READY and not self._stop.is_set():
            self._say(f"{process.name} is ready after {now - self._since.pop(process.name, now):.0f} s")
            sys.stdout.flush()
        elif process.state in (State.FAILED, State.READY):
            self._since.pop(process.name, None)

    async def _look(self) -> dict[str, str]:
        """Backends that are not ours, by name: up or down, and what they serve."""
        theirs = [backend for backend in self._setup.config.backends if backend.launch is None and backend.url is not None]
        keys = [backend.api_key.get_secret_value() if backend.api_key is not None else None for backend in theirs]
        found = await asyncio.gather(
            *(look(str(backend.url), backend.kind, key) for backend, key in zip(theirs, keys, strict=True))
        )
        words = {}
        for backend, what in zip(theirs, found, strict=True):
            words[backend.name] = ", ".join(["up", *what.models]) if what.healthy else f"down ({what.why})"
        return words

    async def _first_health(self, supervisor: Supervisor) -> None:
        """Where a backend is up, let the gateway see it before the user is told to try."""
        if not any(process.state is State.READY for process in supervisor.backends):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._setup.config.routing.health_interval_s + HEALTH_PATIENCE_S):
                while await http_status(f"{self._setup.url}/health/ready") != 200:
                    await asyncio.sleep(0.1)

    async def _web(self, supervisor: Supervisor) -> str | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(WEB_PATIENCE_S):
                while (found := web_url(list(supervisor.gateways[0].tail))) is None:
                    await asyncio.sleep(0.05)
                return found
        return None
