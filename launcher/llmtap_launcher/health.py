"""When something counts as ready or healthy: an HTTP answer, a line of output, a fresh file.

Probes of our own children speak the few bytes of HTTP they need themselves (they run ten times a second while a process starts,
and must not go through a proxy that the environment names); servers of others are asked with httpx.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .process import Probe, Started

#: a file's time stamp may be this much older than the clock (coarse time stamps of some file systems)
STAMP_SLACK_S = 1.0


async def http_status(url: str, timeout_s: float = 2.0) -> int | None:
    """Status code of a GET of an http:// or https:// URL; None when nobody answers in time, or not in HTTP.

    Of our own children only: certificates are not looked at, they are for the names that clients use.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    tls = None
    if parts.scheme == "https":
        tls = ssl.create_default_context()
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                writer.write(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                line = await reader.readline()
            finally:
                writer.close()
                await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
    except (OSError, TimeoutError, ValueError):
        return None
    match = re.match(rb"HTTP/1\.[01] (\d{3})", line)
    return int(match[1]) if match else None


def http_ready(url: str) -> Probe:
    """Ready when a GET of `url` answers 200."""

    async def probe(started: Started) -> bool:
        return await http_status(url) == 200

    return probe


def line_ready(pattern: str) -> Probe:
    """Ready when a line of the output matches the regular expression."""
    compiled = re.compile(pattern)

    async def probe(started: Started) -> bool:
        return any(compiled.search(line) for line in list(started.lines))

    return probe


def file_ready(path: Path) -> Probe:
    """Ready when the process, or somebody since its start, has written `path`."""

    async def probe(started: Started) -> bool:
        found = path.stat()
        return found.st_size > 0 and found.st_mtime >= started.at - STAMP_SLACK_S

    return probe


def reachable(host: str) -> str:
    """The host to connect to for a server that listens on `host`, as it is written in a URL."""
    name = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"[{name}]" if ":" in name else name


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at somebody else's server found. `models` empty: it did not say."""

    healthy: bool
    models: tuple[str, ...] = ()
    why: str | None = None


async def look(url: str, kind: str = "openai", api_key: str | None = None, timeout_s: float = 3.0) -> Seen:
    """Ask the inference server at base URL `url` for its models; that it answers is its health. Never raises."""
    import httpx

    path, key = ("/api/tags", "name") if kind == "ollama" else ("/v1/models", "id")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    base, transport = url.rstrip("/").removesuffix("/v1"), None
    if url.startswith("unix://"):
        base, transport = "http://localhost", httpx.AsyncHTTPTransport(uds=url.removeprefix("unix://"))
    try:
        async with httpx.AsyncClient(timeout=timeout_s, trust_env=False, transport=transport) as client:
            answer = await client.get(base + path, headers=headers)
            if answer.status_code != 200:
                return Seen(False, why=f"answers {answer.status_code}")
            listed = answer.json()
            rows = listed["models" if kind == "ollama" else "data"]
            return Seen(True, tuple(str(row[key]) for row in rows))
    except httpx.TimeoutException:
        return Seen(False, why=f"no answer within {timeout_s:g} s")
    except httpx.HTTPError as error:
        return Seen(False, why=str(error) or type(error).__name__)
    except (ValueError, KeyError, TypeError):
        return Seen(False, why="answers something else than a list of models")
