"""Backends with what may be left open in their configuration decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmtap.core.config import Backend

from .vllm import served_names


def settled(backend: Backend, port: Callable[[], int]) -> Backend:
    """`backend` with its URL, and the models of one that has to be known while it is stopped. `port` gives a free one."""
    updates: dict[str, Any] = {}
    if backend.url is None:
        updates["url"] = f"http://127.0.0.1:{port()}"
    if backend.launch is not None and backend.launch.on_demand and backend.models is None:
        updates["models"] = served_names(backend.launch)
    return backend.model_copy(update=updates) if updates else backend
