"""Sending: so many at a time, each reply read to its end and recorded."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from llmtap.core.errors import LlmtapError
from llmtap.middleware import VLLMConnectionError, VLLMError, VLLMMiddleware, VLLMStatusError
from llmtap_launcher.replay.chosen import TAG, Asked, run_tag
from llmtap_launcher.replay.target import Target


@dataclass(slots=True)
class Sent:
    """What came of it: `answered` and, by reason, `failed` (`words`: what the first of each said); `gone`: requests that are not
    stored any more."""

    answered: int = 0
    gone: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    words: dict[str, str] = field(default_factory=dict)

    def fail(self, reason: str, words: str) -> None:
        """One more."""
        self.failed[reason] += 1
        self.words.setdefault(reason, words)

    @property
    def done(self) -> int:
        """Of all that were given."""
        return self.answered + self.gone + self.failed.total()


@dataclass(frozen=True, slots=True)
class Manner:
    """How: `at_once` requests at a time, `timeout_s` until the next byte. `directory`: where the log goes, if it is ours."""

    run: str
    directory: Path
    segment_mb: float
    at_once: int = 4
    timeout_s: float = 600.0


async def send(
    asked: Iterator[Asked | None],
    target: Target,
    manner: Manner,
    tell: Callable[[Sent], None],
    transport: httpx.AsyncBaseTransport | None = None,
) -> Sent:
    """Sends all of them. A request that fails is counted; raises LlmtapError when the target cannot be reached."""
    sent = Sent()
    client = VLLMMiddleware(
        target.base_url,
        manner.directory,
        enable_file_logging=not target.records,
        max_log_size_mb=manner.segment_mb,
        timeout=manner.timeout_s,
        api_key=target.api_key,
        key_name=TAG,
        backend=target.name,
        transport=transport,
    )

    async def work() -> None:
        for one in asked:
            if one is None:
                sent.gone += 1
            else:
                await _send(client, one, target, manner.run, sent)
            tell(sent)

    async with client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(manner.at_once):
                    group.create_task(work())
        except* VLLMConnectionError as errors:
            raise LlmtapError(_first(errors)) from errors
    return sent


async def _send(client: VLLMMiddleware, one: Asked, target: Target, run: str, sent: Sent) -> None:
    body = dict(one.body)
    about: dict[str, Any] = {"metadata": {TAG: run, "replay_of": one.uid}, "tags": [TAG, run_tag(run)]}
    model = str(body.pop("model", "") or "")
    stream: Any = body.pop("stream", False) is True
    if target.records:
        about["extra_headers"] = {
            "x-llmtap-tags": ",".join(about["tags"]),
            "x-llmtap-metadata": json.dumps(about["metadata"]),
            "x-llmtap-cache": "no-cache",
        }
    try:
        if one.endpoint == "completions":
            prompt = body.pop("prompt")
            answer = await client.completions(prompt, model, stream=stream, extra_body=body, **about)
        else:
            answer = await client.chat_completion(body.pop("messages"), model, stream=stream, extra_body=body, **about)
        if stream:
            async for _ in answer:
                pass
    except VLLMConnectionError:
        raise
    except VLLMStatusError as error:
        sent.fail(f"{error.status} {error.type}", str(error))
    except (VLLMError, ValueError) as error:
        sent.fail(getattr(error, "type", None) or "bad request", str(error))
    else:
        sent.answered += 1


def _first(errors: BaseExceptionGroup[Any]) -> str:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return str(found)
