from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap_launcher.sim import text, words
from llmtap_launcher.sim.text import Tokenizer
from support.sim import ROOT, sim_environment

TOKENIZER = Tokenizer()


@given(st.text())
def test_encode_and_decode_lose_nothing(sample: str) -> None:
    clean = sample.encode("utf-8", "replace").decode()
    ids = TOKENIZER.encode(clean)
    assert TOKENIZER.decode(ids) == clean
    assert all(0 <= i < TOKENIZER.vocabulary_size for i in ids)


@given(st.text())
def test_deltas_join_to_the_text(sample: str) -> None:
    clean = sample.encode("utf-8", "replace").decode()
    assert "".join(TOKENIZER.deltas(TOKENIZER.encode(clean))) == clean


def test_chatml_costs_what_a_real_tokenizer_asks() -> None:
    assert len(TOKENIZER.encode("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")) == 9


def test_a_known_word_is_one_token_with_its_space() -> None:
    assert [TOKENIZER.token_text(t) for t in TOKENIZER.encode("Hello world, the weather")] == [
        "Hello", " world", ",", " the", " weather",
    ]  # fmt: skip


def test_an_unknown_character_falls_apart_into_bytes_and_shows_once_whole() -> None:
    ids = TOKENIZER.encode("ö")
    assert len(ids) == 2
    assert TOKENIZER.deltas(ids) == ["", "ö"]
    assert TOKENIZER.token_text(ids[0]) == "�"


def test_ids_outside_the_vocabulary_say_nothing() -> None:
    assert TOKENIZER.decode([999_999, -1]) == ""


def test_half_a_surrogate_pair_is_not_an_error() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"


def test_control_tokens_are_one_token_each() -> None:
    assert [TOKENIZER.encode(s) for s in words.SPECIALS] == [[n] for n in range(len(words.SPECIALS))]
    assert TOKENIZER.token_text(text.EOS) == "<|im_end|>"


def test_the_same_parts_give_the_same_text_in_another_process() -> None:
    def compose() -> str:
        return TOKENIZER.decode(text.compose_whole(TOKENIZER, text.rng(0, "Hello", 1), 20, 120))

    code = (
        "from llmtap_launcher.sim import text; t = text.Tokenizer();"
        "import sys; sys.stdout.buffer.write(t.decode(text.compose_whole(t, text.rng(0, 'Hello', 1), 20, 120)).encode())"
    )
    other = subprocess.run([sys.executable, "-c", code], env=sim_environment(), cwd=ROOT, check=True, capture_output=True)
    assert other.stdout.decode() == compose()


def test_different_parts_give_different_texts() -> None:
    texts = {TOKENIZER.decode(text.compose_whole(TOKENIZER, text.rng(0, f"prompt {n}"), 20, 120)) for n in range(200)}
    assert len(texts) == 200


@pytest.mark.parametrize("seed", range(30))
def test_whole_texts_keep_their_length_and_end_a_sentence(seed: int) -> None:
    ids = text.compose_whole(TOKENIZER, text.rng(seed), 20, 120)
    assert 20 <= len(ids) <= 120
    assert TOKENIZER.decode(ids)[-1] in ".!?"


def test_texts_are_not_all_ascii() -> None:
    sample = "".join(TOKENIZER.decode(text.compose_whole(TOKENIZER, text.rng(n), 20, 120)) for n in range(20))
    assert not sample.isascii()


def test_compose_gives_exactly_the_length_after_its_lead() -> None:
    ids = text.compose(TOKENIZER, text.rng(1), 50, lead=" ")
    assert len(ids) == 50
    assert TOKENIZER.decode(ids).startswith(" ")
    assert not TOKENIZER.decode(text.compose(TOKENIZER, text.rng(1), 50)).startswith(" ")
