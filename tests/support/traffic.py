"""A spool of varied exchanges, as a gateway writes it: every outcome, models, keys, backends, tags, streams and whole replies."""

from __future__ import annotations

import random
from pathlib import Path

import orjson

from llmtap.core.record import Begin, Choice, End, Summary, Usage, encode
from llmtap.spool.writer import SegmentWriter

START_US = 1_795_224_923_456_000  # 2026-11-21T01:35:23.456Z
MODELS = ("small", "large")


def write(folder: Path, n: int, *, minutes: float = 300, seed: int = 1) -> None:
    """`n` exchanges into `<folder>/spool`, over so many minutes from START_US."""
    dice = random.Random(seed)
    spool = SegmentWriter(folder / "spool", "w0", "boot", 200_000)
    for number in range(n):
        at = START_US + int(number * minutes * 60e6 / n)
        model, backend = dice.choice(MODELS), dice.choice("ab")
        stream, luck = dice.random() < 0.8, dice.random()
        body = orjson.dumps(
            {"model": model, "messages": [{"role": "user", "content": f"question {number % 40}"}], "stream": stream}
        )
        begin = Begin(
            f"U{number:025d}", at, "w0", "POST", "/v1/chat/completions", "chat", key_name=dice.choice(["ci", "prod", None]),
            tags=["canary"] if dice.random() < 0.2 else None, model=model, stream=stream, request_bytes=len(body), body=body,
            body_is_json=True,
        )  # fmt: skip
        spool.append(encode(begin))
        if luck > 0.99:
            continue  # its gateway died
        tokens = dice.randint(1, 60)
        ttft = round(dice.lognormvariate(5, 0.4), 2)
        gaps = [round(dice.lognormvariate(0, 0.3) * 120) for _ in range(tokens - 1)]
        duration = round(ttft + sum(gaps) / 10, 2)
        end = End(
            begin.uid, at + int(duration * 1000), "ok", status=200, backend=backend, attempts=1, queue_ms=round(dice.random(), 3),
            content_type="text/event-stream" if stream else "application/json", duration_ms=duration,
            ttft_ms=ttft if stream else None, deltas=[round(ttft * 10), *gaps] if stream else None, chunks=tokens,
            summary=Summary(
                f"c-{number}", f"served-{model}",
                [Choice(0, content=f"answer {number}", finish_reason=dice.choice(["stop", "length"]))],
                Usage(dice.randint(10, 900), tokens, dice.randint(0, 9), source="upstream"), complete=True,
            ),
        )  # fmt: skip
        if luck < 0.05:
            end.outcome, end.status, end.summary = "upstream_error", 502, None
            end.error_type = dice.choice(["upstream_error", "timeout_error"])
            end.deltas = end.ttft_ms = None
        elif luck < 0.08:
            end.outcome, end.status, end.error_type, end.summary, end.backend = "rejected", 429, "rate_limit_error", None, None
            end.deltas = end.ttft_ms = None
        elif luck < 0.13:
            end.outcome = "client_abort"
        elif luck < 0.2:
            end.outcome, end.cache, end.deltas = "cached", "hit", None
        spool.append(encode(end))
    spool.close()


def plain(folder: Path, target: Path) -> None:
    """The records as JSON lines, as `cut -d' ' -f3-` gives them."""
    with target.open("wb") as out:
        for path in sorted((folder / "spool").iterdir()):
            out.writelines(line.split(b" ", 2)[2] for line in path.read_bytes().splitlines(keepends=True))
