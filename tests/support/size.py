"""How much a test does: enough to find a fault in `make test`, the whole of what was promised in `make test-long`."""

from __future__ import annotations

import os


def size(variable: str, short: int, long: int) -> int:
    """The number of `variable` if it is set, else `long` where LLMTAP_TEST_LONG is set, else `short`."""
    given = os.environ.get(variable)
    return int(given) if given else long if os.environ.get("LLMTAP_TEST_LONG") else short
