"""A real Datasette process on a capture database, started as the launcher starts it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from llmtap_launcher.datasette import command
from llmtap_launcher.ports import free_ports
from support.wait import eventually


@dataclass(frozen=True)
class Server:
    """`url` is where it answers, `log` what it printed; `name` is what Datasette calls the database."""

    url: str
    log: Path
    name: str
    http: httpx.Client
    pid: int = 0

    def get(self, path: str, **params: str) -> httpx.Response:
        return self.http.get(path, params=params or None)

    def rows(self, path: str, **params: str) -> list[dict[str, object]]:
        """The rows of a table's or query's JSON."""
        answer = self.get(f"/{self.name}/{path}.json", _shape="array", **params)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, object]] = answer.json()
        return found


@contextlib.contextmanager
def serve(db: Path, log: Path) -> Iterator[Server]:
    """Datasette on `db`, ready; ended with the block."""
    port = free_ports(1)[0]
    argv = command.datasette_argv(db, "127.0.0.1", port)
    url = command.base_url("127.0.0.1", port)
    with log.open("w") as out:
        process = subprocess.Popen(
            argv, env=command.datasette_env(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    return client.get(command.READY_PATH).status_code == 200
                return False

            eventually(ready, "Datasette is not ready", timeout_s=60)
            yield Server(url, log, db.stem, client, process.pid)
    finally:
        process.terminate()
        process.wait(20)
