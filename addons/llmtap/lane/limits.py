"""How much and how long: every bound of the lane in one value that can be swapped while it runs.

The defaults are those of a gateway in the open: a head is 64 KiB as in most servers, idle upstream connections are dropped
before vLLM (uvicorn) drops them after 5 s, and a client that sends or reads too slowly does not hold a connection for ever.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Sizes in bytes, times in seconds. A new value applies to the next request of every connection."""

    max_body_bytes: int = 64 << 20  # request bodies are buffered whole
    max_reply_bytes: int = 256 << 20  # replies that no addon streams are buffered whole too
    max_head_bytes: int = 64 << 10  # request line and headers together; trailers the same again
    max_headers: int = 200
    max_connections: int = 10_000
    max_pipelined: int = 64  # parsed and waiting, of one connection; more close it
    head_timeout_s: float = 30.0  # from its first byte (or from the connection's opening) to the end of the head
    body_timeout_s: float = 60.0  # without progress, and for all of it at less than `min_body_rate`
    min_body_rate: int = 1024  # bytes a second
    keepalive_timeout_s: float = 75.0  # a client connection between two requests
    write_timeout_s: float = 120.0  # a client that takes none of what was written
    linger_s: float = 2.0  # reading on after an early answer, so that the client gets to see it
    linger_bytes: int = 1 << 20
    drain_rest_bytes: int = 64 << 10  # a known rest of a refused body up to this is read, and the connection kept
    drain_s: float = 30.0  # requests in flight when the gateway stops
    pool_idle_s: float = 4.0  # below the 5 s after which uvicorn closes
    pool_size: int = 256  # idle connections a backend
    dns_ttl_s: float = 30.0
    kept_messages: int = 100  # of a websocket, in its flow: the last ones ...
    kept_bytes: int = 4 << 20  # ... and no more than this together
    high_water: int = 256 << 10  # buffered towards one peer before the other side is no longer read

    @property
    def tick_s(self) -> float:
        """How often connections are looked over: fine enough for the shortest time, once a second at most."""
        shortest = min(self.head_timeout_s, self.body_timeout_s, self.keepalive_timeout_s, self.write_timeout_s, self.pool_idle_s)
        return min(1.0, max(0.02, shortest / 4))
