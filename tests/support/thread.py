"""Blocking context managers in async tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager


@contextlib.asynccontextmanager
async def in_thread[T](context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enters and leaves it in a thread: whatever it waits for does not hold up the loop."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
