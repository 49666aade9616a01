"""How much of a request is recorded: all of it, its numbers only, or nothing.

The first rule that fits key and model decides, else `capture.sample`; a request's own `x-llmtap-capture` can only make it
less. A session (else each request by itself) is in the sample or not as a whole.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal
from zlib import crc32

from llmtap.core.config import Capture

Mode = Literal["full", "metadata", "off"]
MODES: tuple[Mode, ...] = ("full", "metadata", "off")


class CaptureRules:
    """The configuration's rules. Immutable: a reload makes new ones."""

    def __init__(self, capture: Capture) -> None:
        self._rules = capture.rules
        self._sample = capture.sample
        self._opt_out = capture.opt_out
        #: whether there is anything to decide but for what a request says itself
        self.trivial = not capture.rules and capture.sample >= 1

    def mode(self, wish: Mode | None, key: str | None, model: str | None, identity: str) -> Mode:
        """What to record. `wish`: the request's own; `identity`: of the session, else of the request."""
        mode: Mode = "full"
        sample = self._sample
        for rule in self._rules:
            if fnmatchcase(key or "", rule.key) and fnmatchcase(model or "", rule.model):
                mode, sample = rule.capture, self._sample if rule.sample is None else rule.sample
                break
        if mode == "full" and sample < 1 and crc32(identity.encode()) >= sample * 2**32:
            mode = "metadata"
        if wish is not None and self._opt_out:
            mode = MODES[max(MODES.index(mode), MODES.index(wish))]
        return mode
