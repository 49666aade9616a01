from __future__ import annotations

from llmtap_launcher.sim import words


def test_pieces_are_distinct_and_in_a_fixed_order() -> None:
    pieces = words.pieces()
    assert len(set(pieces)) == len(pieces)
    assert pieces == words.pieces()
    assert 3000 < len(pieces) < 10_000


def test_what_a_sentence_is_made_of_is_in_the_vocabulary_with_its_space() -> None:
    pieces = set(words.pieces())
    for word in [*words.NOUNS, *words.ADJECTIVES, *words.VERBS, *words.ADVERBS, *words.PREPOSITIONS, *words.FOREIGN]:
        assert {word, " " + word} <= pieces


def test_every_printable_ascii_character_is_a_piece_or_a_byte() -> None:
    pieces = set(words.pieces())
    assert all(chr(c) in pieces for c in range(0x21, 0x7F) if not chr(c).islower())


def test_some_words_are_not_ascii() -> None:
    assert any(not w.isascii() for w in words.FOREIGN)
