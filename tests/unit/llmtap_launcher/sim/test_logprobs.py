from __future__ import annotations

from llmtap_launcher.sim import logprobs
from llmtap_launcher.sim.text import Tokenizer

TOKENIZER = Tokenizer()
TOKENS = TOKENIZER.encode("Hello world!")


def test_chat_entry() -> None:
    entry = logprobs.chat_entry(TOKENIZER, TOKENS[0], 3, 4)
    assert [*entry] == ["token", "logprob", "bytes", "top_logprobs"]
    assert (entry["token"], bytes(entry["bytes"])) == ("Hello", b"Hello")
    assert entry["top_logprobs"][0] == {"token": "Hello", "logprob": entry["logprob"], "bytes": entry["bytes"]}
    values = [top["logprob"] for top in entry["top_logprobs"]]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert all(v < 0 for v in values)
    assert logprobs.chat_entry(TOKENIZER, TOKENS[0], 3, 4) == entry
    assert logprobs.chat_entry(TOKENIZER, TOKENS[0], 3, 0)["top_logprobs"] == []


def test_completion_block_offsets_run_on() -> None:
    block = logprobs.completion_block(TOKENIZER, TOKENS, 0, 2, 10)
    assert [*block] == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
    assert block["text_offset"] == [10, 15, 21]
    assert block["tokens"] == ["Hello", " world", "!"]
    assert [len(top) for top in block["top_logprobs"]] == [2, 2, 2]


def test_the_first_token_of_an_echoed_prompt_has_no_probability() -> None:
    block = logprobs.completion_block(TOKENIZER, TOKENS, 0, 1, 0, prompt=True)
    assert block["token_logprobs"][0] is None
    assert block["top_logprobs"][0] is None
    assert None not in block["token_logprobs"][1:]


def test_prompt_entries() -> None:
    first, *rest = logprobs.prompt_entries(TOKENIZER, TOKENS, 0)
    assert first is None
    assert [[*entry] for entry in rest if entry] == [[str(t)] for t in TOKENS[1:]]
    assert rest[0] is not None
    assert [*rest[0][str(TOKENS[1])]] == ["logprob", "rank", "decoded_token"]
