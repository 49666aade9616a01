"""Faults on demand: what they are called, how a user writes them, and which one the next request gets.

Three ways to ask, the nearest wins: `[[sim:fail=KIND=ARG]]` anywhere in a request's body (a gateway forwards that for certain),
the header `x-sim-fail: KIND=ARG`, and server-wide, by `--fail KIND[=ARG][:PROBABILITY|:COUNT]` or `POST /sim/fail`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Kind = Literal[
    "refuse",
    "die_before_headers",
    "die_mid_stream",
    "engine_dead",
    "http_500",
    "http_503",
    "stall",
    "bad_json",
    "slow_headers",
    "garbage",
]
KINDS: tuple[str, ...] = get_args(Kind)

#: what each does, and what its argument means; the help of `--fail` and the documentation are made from this
DESCRIPTIONS: dict[str, str] = {
    "refuse": "server-wide: stop listening (ARG seconds, else for good); one request: reset its TCP connection at once",
    "die_before_headers": "close the connection without an answer",
    "die_mid_stream": "close the connection after ARG tokens (default 5), half-way through a reply that is not streamed",
    "engine_dead": "vLLM's engine dies after ARG tokens (default 5): error event and [DONE], or 500; /health 503 from then on",
    "http_500": "answer 500 as vLLM does when a request fails inside",
    "http_503": "answer 503 as vLLM does when its queue is full",
    "stall": "send nothing more after 5 tokens, for ARG seconds (default: for good), connection kept open",
    "bad_json": "send a chunk that is not JSON after 5 tokens; a reply that is not streamed is cut JSON",
    "slow_headers": "wait ARG seconds (default 5) before the response's headers",
    "garbage": "answer with bytes that are not HTTP",
}
_DEFAULT_ARGUMENTS = {"die_mid_stream": 5.0, "engine_dead": 5.0, "slow_headers": 5.0}
_DIRECTIVE = re.compile(r"\[\[sim:([a-z_]+)=([^\]\s\"\\]*)\]\]\s?")
_DIRECTIVE_BYTES = re.compile(rb"\[\[sim:([a-z_]+)=([^\]\s\"\\]*)\]\]")
#: tokens sent before a fault whose argument is a time, or that has none
TOKENS_BEFORE = 5


class FaultError(ValueError):
    """A fault that does not exist or is not written right; `str()` says what would be."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault for one request. `argument`: seconds or tokens, see `DESCRIPTIONS`; None: not said, and nothing is assumed."""

    kind: str
    argument: float | None = None

    @property
    def after_tokens(self) -> int:
        """How many tokens go out before a fault in the middle of a reply."""
        if self.kind in ("die_mid_stream", "engine_dead") and self.argument is not None:
            return int(self.argument)
        return TOKENS_BEFORE

    @property
    def seconds(self) -> float:
        """How long it lasts, infinite where nothing was said."""
        return float("inf") if self.argument is None else self.argument


def parse_fault(spec: str) -> Fault:
    """`KIND` or `KIND=ARG`. Raises FaultError."""
    kind, given, argument = spec.strip().partition("=")
    if kind not in KINDS:
        raise FaultError(f"there is no fault {kind!r}; there are {', '.join(KINDS)}")
    if not given:
        return Fault(kind, _DEFAULT_ARGUMENTS.get(kind))
    try:
        value = float(argument)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise FaultError(f"{kind}={argument}: expected a number that is not negative")
    return Fault(kind, value)


@dataclass(slots=True)
class Rule:
    """A server-wide fault: how often it still strikes (None: always), with which probability, on which path (None: inference)."""

    fault: Fault
    times: int | None = None
    probability: float = 1.0
    path: str | None = None


def parse_rule(spec: str) -> Rule:
    """`KIND[=ARG][:PROBABILITY|:COUNT]`: a number with a point is a probability, one without is a count. Raises FaultError."""
    body, given, how_often = spec.partition(":")
    rule = Rule(parse_fault(body))
    if not given:
        return rule
    try:
        if "." in how_often:
            rule.probability = float(how_often)
        else:
            rule.times = int(how_often)
    except ValueError:
        raise FaultError(f"{spec!r}: after the colon comes a count (3) or a probability (0.1)") from None
    if not 0 <= rule.probability <= 1 or (rule.times is not None and rule.times < 1):
        raise FaultError(f"{spec!r}: a probability is from 0.0 to 1.0, a count at least 1")
    return rule


class Rules:
    """The server-wide faults in force, asked once for each request. `random` decides probabilities."""

    def __init__(self, rules: Iterable[Rule], random: Random) -> None:
        self._rules = list(rules)
        self._random = random

    def add(self, rule: Rule) -> None:
        """Puts a fault in force, before those already there."""
        self._rules.insert(0, rule)

    def clear(self) -> None:
        """No more faults."""
        self._rules.clear()

    def list(self) -> list[Rule]:
        """What is in force."""
        return [*self._rules]

    def strike(self, path: str, inference: bool) -> Fault | None:
        """The fault for a request to `path`, if any; a counted one is used up by it."""
        for rule in self._rules:
            if (rule.path is None and not inference) or (rule.path is not None and rule.path != path):
                continue
            if rule.probability < 1 and self._random.random() >= rule.probability:
                continue
            if rule.times is not None:
                rule.times -= 1
                if not rule.times:
                    self._rules.remove(rule)
            return rule.fault
        return None


@dataclass(frozen=True, slots=True)
class Directives:
    """What a request asked of the simulation itself: a fault and its own pace."""

    fault: Fault | None = None
    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    tokens: int | None = None


def read_directives(body: bytes, header: str | None) -> Directives:
    """Directives in a raw request body (`[[sim:tps=50]]`, `tokens`, `ttft` in ms, `fail`) and in the header `x-sim-fail`.

    Of several of a kind the last counts. Raises FaultError.
    """
    found = {k.decode(): v.decode("latin-1") for k, v in _DIRECTIVE_BYTES.findall(body)} if b"[[sim:" in body else {}
    unknown = found.keys() - {"fail", "tps", "ttft", "tokens"}
    if unknown:
        raise FaultError(f"there is no directive {unknown.pop()!r}; there are fail, tps, ttft, tokens")
    fail = found.get("fail", header)
    return Directives(
        fault=parse_fault(fail) if fail else None,
        tokens_per_second=_number(found, "tps"),
        ttft_ms=_number(found, "ttft"),
        tokens=max(1, int(tokens)) if (tokens := _number(found, "tokens")) is not None else None,
    )


def _number(found: dict[str, str], name: str) -> float | None:
    if name not in found:
        return None
    try:
        value = float(found[name])
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise FaultError(f"[[sim:{name}={found[name]}]]: expected a number that is not negative")
    return value


def strip_directives(text: str) -> str:
    """The text without its directives: they do not change what the model says."""
    return _DIRECTIVE.sub("", text) if "[[sim:" in text else text
