"""Users' own clients, many at once: the SDKs of OpenAI, Anthropic and Ollama through the gateway to simulated engines.

What is counted must be what the engines counted, exactly, whatever dialect a request came in and however many ran beside it.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from support.gateway import Gateway, running_gateway, wait_up
from support.sim import SimHandle, running_sim
from support.wait import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
MODEL = "sim-small"
THREADS, EACH = 64, 6
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}}


@dataclass(frozen=True)
class Told:
    """Tokens as the SDK told them; None where the API does not."""

    endpoint: str
    prompt: int | None = None
    completion: int | None = None


@dataclass(frozen=True)
class Clients:
    """One thread's."""

    openai: openai.OpenAI
    anthropic: anthropic.Anthropic
    ollama: ollama.Client

    @classmethod
    def of(cls, url: str) -> Clients:
        return cls(
            openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=120),
            anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, timeout=120),
            ollama.Client(host=url, timeout=120),
        )

    def close(self) -> None:
        self.openai.close()
        self.anthropic.close()
        self.ollama._client.close()


def said(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


def chat(c: Clients, prompt: str) -> Told:
    usage = c.openai.chat.completions.create(model=MODEL, messages=said(prompt), max_tokens=30).usage
    assert usage is not None
    return Told("chat", usage.prompt_tokens, usage.completion_tokens)


def chat_n2(c: Clients, prompt: str) -> Told:
    reply = c.openai.chat.completions.create(model=MODEL, messages=said(prompt), max_tokens=20, n=2)
    assert reply.usage is not None and len(reply.choices) == 2
    return Told("chat", reply.usage.prompt_tokens, reply.usage.completion_tokens)


def chat_stream(c: Clients, prompt: str) -> Told:
    """Asks for no usage, so must see none."""
    chunks = list(c.openai.chat.completions.create(model=MODEL, messages=said(prompt), max_tokens=12, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"
    return Told("chat")


def chat_stream_usage(c: Clients, prompt: str) -> Told:
    options: Any = {"include_usage": True}
    stream = c.openai.chat.completions.create(model=MODEL, messages=said(prompt), stream=True, stream_options=options)
    usage = list(stream)[-1].usage
    assert usage is not None
    return Told("chat", usage.prompt_tokens, usage.completion_tokens)


def chat_tools(c: Clients, prompt: str) -> Told:
    asked = f"{prompt} What is the weather in Paris and London?"
    stream = c.openai.chat.completions.create(model=MODEL, messages=said(asked), tools=[TOOL], stream=True)
    calls: dict[int, str] = {}
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            calls[call.index] = calls.get(call.index, "") + (call.function.arguments or "")
    assert [json.loads(arguments)["city"] for arguments in calls.values()] == ["Paris", "London"]
    return Told("chat")


def completions(c: Clients, prompt: str) -> Told:
    reply = c.openai.completions.create(model=MODEL, prompt=[prompt, "another prompt"], max_tokens=15, n=2)
    assert reply.usage is not None and [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    # the usage says each prompt once, the engine takes it in for each choice: that is what is counted
    return Told("completions", 2 * reply.usage.prompt_tokens, reply.usage.completion_tokens)


def responses(c: Clients, prompt: str) -> Told:
    reply = c.openai.responses.create(model=MODEL, input=prompt, max_output_tokens=25)
    assert reply.usage is not None and reply.output_text
    return Told("responses", reply.usage.input_tokens, reply.usage.output_tokens)


def responses_stream(c: Clients, prompt: str) -> Told:
    with c.openai.responses.stream(model=MODEL, input=prompt) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        reply = stream.get_final_response()
    assert reply.usage is not None and reply.output_text == text
    return Told("responses", reply.usage.input_tokens, reply.usage.output_tokens)


def embeddings(c: Clients, prompt: str) -> Told:
    reply = c.openai.embeddings.create(model=MODEL, input=[prompt, "another text"])
    assert len(reply.data) == 2 and len(reply.data[0].embedding) == 64
    return Told("embeddings", reply.usage.prompt_tokens, 0)


def messages(c: Clients, prompt: str) -> Told:
    reply = c.anthropic.messages.create(model=MODEL, messages=said(prompt), max_tokens=12)
    assert reply.stop_reason == "max_tokens"
    return Told("messages", reply.usage.input_tokens, reply.usage.output_tokens)


def messages_stream(c: Clients, prompt: str) -> Told:
    with c.anthropic.messages.stream(model=MODEL, messages=said(prompt), max_tokens=500) as stream:
        text = "".join(stream.text_stream)
        reply = stream.get_final_message()
    assert text and reply.stop_reason == "end_turn"
    return Told("messages", reply.usage.input_tokens, reply.usage.output_tokens)


def messages_tools(c: Clients, prompt: str) -> Told:
    tools: Any = [{"name": "get_weather", "input_schema": WEATHER}]
    asked = said(f"{prompt} What is the weather in Rome?")
    with c.anthropic.messages.stream(model=MODEL, messages=asked, max_tokens=300, tools=tools) as stream:
        reply = stream.get_final_message()
    assert [block.input for block in reply.content if block.type == "tool_use"] == [{"city": "Rome"}]
    return Told("messages", reply.usage.input_tokens, reply.usage.output_tokens)


def ollama_chat(c: Clients, prompt: str) -> Told:
    reply = c.ollama.chat(model=MODEL, messages=said(prompt), options={"num_predict": 20}, think=True)
    assert reply.message.thinking
    return Told("ollama_chat", reply.prompt_eval_count, reply.eval_count)


def ollama_chat_stream(c: Clients, prompt: str) -> Told:
    asked = f"{prompt} What is the weather in Oslo?"
    parts = list(c.ollama.chat(model=MODEL, messages=said(asked), tools=[TOOL], stream=True))
    calls = [call.function.arguments for part in parts for call in part.message.tool_calls or ()]
    assert calls == [{"city": "Oslo"}] and parts[-1].done
    return Told("ollama_chat", parts[-1].prompt_eval_count, parts[-1].eval_count)


def ollama_generate(c: Clients, prompt: str) -> Told:
    parts = list(c.ollama.generate(model=MODEL, prompt=prompt, stream=True, options={"num_predict": 12}))
    assert parts[-1].done_reason == "length"
    return Told("ollama_generate", parts[-1].prompt_eval_count, parts[-1].eval_count)


def ollama_embed(c: Clients, prompt: str) -> Told:
    reply = c.ollama.embed(model=MODEL, input=[prompt, "another text"])
    assert len(reply.embeddings) == 2
    return Told("ollama_embed", reply.prompt_eval_count, 0)


KINDS: tuple[Callable[[Clients, str], Told], ...] = (
    chat, chat_n2, chat_stream, chat_stream_usage, chat_tools, completions, responses, responses_stream, embeddings, messages,
    messages_stream, messages_tools, ollama_chat, ollama_chat_stream, ollama_generate, ollama_embed,
)  # fmt: skip


@pytest.fixture
def engines() -> Iterator[list[SimHandle]]:
    """Two as vLLM, one as Ollama."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running_sim(tokens_per_second=2000, ttft_ms=2, seed=seed)) for seed in range(3)]


def counted(engine: SimHandle, name: str) -> float:
    """A counter of the engine's own."""
    lines = httpx.get(f"{engine.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}_total{{"))


def test_64_threads_of_three_sdks(tmp_path: Path, engines: list[SimHandle]) -> None:
    names = ("vllm-a", "vllm-b", "ollama")
    kinds = ("openai", "openai", "ollama")
    backends = [{"name": n, "url": e.url, "kind": k} for n, e, k in zip(names, engines, kinds, strict=True)]
    config = {"backends": backends}
    told: list[Told] = []
    lock = threading.Lock()

    def work(number: int, gateway: Gateway) -> None:
        clients = Clients.of(gateway.url)
        try:
            pick = random.Random(number)
            kinds = [KINDS[(number + step) % len(KINDS)] for step in range(EACH)]
            for kind in pick.sample(kinds, len(kinds)):
                found = kind(clients, f"Thread {number} says {pick.random()} about {kind.__name__}.")
                with lock:
                    told.append(found)
        finally:
            clients.close()

    with running_gateway(tmp_path, config) as gateway:
        wait_up(gateway)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS), [gateway] * THREADS))
        assert len(told) == THREADS * EACH
        eventually(lambda: gateway.metric("llmtap_requests_total") == len(told), "not every request was counted")
        assert gateway.metric("llmtap_requests_total", outcome="ok") == len(told)

        # what generates, against the engines' own counters
        generating = ("chat", "completions", "responses", "messages", "ollama_chat", "ollama_generate")
        for ours, theirs in (("prompt_tokens", "prompt_tokens"), ("generation_tokens", "generation_tokens")):
            mine = sum(gateway.metric(f"llmtap_{ours}_total", endpoint=endpoint) for endpoint in generating)
            assert mine == sum(counted(engine, theirs) for engine in engines)

        # what the SDKs were told, where they are told everything
        for endpoint in ("responses", "messages", "ollama_chat", "ollama_generate", "completions", "embeddings", "ollama_embed"):
            for name, field in (("prompt_tokens", "prompt"), ("generation_tokens", "completion")):
                expected = sum(getattr(one, field) for one in told if one.endpoint == endpoint)
                assert gateway.metric(f"llmtap_{name}_total", endpoint=endpoint) == expected, (endpoint, name)

        assert gateway.metric("llmtap_tee_errors_total") == 0
        assert gateway.metric("llmtap_hook_errors_total") == 0
        ends = [record for record in gateway.records() if record["t"] == "end"]
        assert len(ends) == len(told)
        assert {end["summary"]["usage"]["source"] for end in ends} == {"upstream"}
        assert all(end["summary"]["complete"] for end in ends)
