"""Made-up log probabilities in vLLM's shapes: the token said is nearly certain, the others are far behind. Deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .text import Tokenizer, rng


def _ranked(tokenizer: Tokenizer, token: int, position: int, top: int) -> list[tuple[int, float]]:
    """The token with its log probability, then as many others as asked, falling."""
    random = rng("logprobs", token, position)
    found = [(token, -random.expovariate(50.0))]
    level = -6.0
    while len(found) < top:
        level -= random.expovariate(1.0)
        other = random.randrange(300, tokenizer.vocabulary_size)
        if all(other != known for known, _ in found):
            found.append((other, level))
    return found


def chat_entry(tokenizer: Tokenizer, token: int, position: int, top: int) -> dict[str, Any]:
    """One element of `logprobs.content`: token, logprob, its UTF-8 bytes, and the `top` most likely ones."""
    ranked = [
        {"token": tokenizer.token_text(t), "logprob": p, "bytes": list(tokenizer.token_bytes(t))}
        for t, p in _ranked(tokenizer, token, position, max(1, top))
    ]
    return {**ranked[0], "top_logprobs": ranked[:top]}


def completion_block(
    tokenizer: Tokenizer, tokens: Sequence[int], position: int, top: int, offset: int, prompt: bool = False
) -> dict[str, Any]:
    """`logprobs` of a text completion for a run of tokens that begins `offset` characters into its choice.

    `prompt`: the run begins with the prompt (echo), whose first token has no probability.
    """
    offsets: list[int] = []
    texts = [tokenizer.token_text(t) for t in tokens]
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    own: list[float | None] = []
    for n, token in enumerate(tokens):
        if prompt and n == 0:
            tops.append(None)
            own.append(None)
            continue
        ranked = _ranked(tokenizer, token, position + n, max(1, top))
        own.append(ranked[0][1])
        tops.append({tokenizer.token_text(t): p for t, p in ranked})
    return {"text_offset": offsets, "token_logprobs": own, "tokens": texts, "top_logprobs": tops}


def prompt_entries(tokenizer: Tokenizer, tokens: Sequence[int], top: int) -> list[dict[str, Any] | None]:
    """`prompt_logprobs`: null for the first token, then one object for each, keyed by token id."""
    entries: list[dict[str, Any] | None] = [None]
    for position, token in enumerate(tokens[1:], 1):
        ranked = _ranked(tokenizer, token, position, max(1, top))
        entries.append(
            {
                str(t): {"logprob": p, "rank": rank, "decoded_token": tokenizer.token_text(t)}
                for rank, (t, p) in enumerate(ranked, 1)
            }
        )
    return entries
