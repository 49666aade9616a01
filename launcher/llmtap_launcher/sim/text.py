"""Deterministic text and the tokenizer behind it.

The tokenizer is a real one in the ways that matter to a client: text goes to integers and back without loss, a word with its
leading space is one token, what is not in the vocabulary falls apart into shorter pieces and in the end into UTF-8 bytes.
Text is drawn from a hash of the prompt, so that the same prompt always gets the same answer, on any machine.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from random import Random

from . import words

_FIRST_BYTE = len(words.SPECIALS)
_FIRST_PIECE = _FIRST_BYTE + 256
_SPECIAL_SPLIT = re.compile("(" + "|".join(re.escape(s) for s in words.SPECIALS) + ")")
#: words with their leading space, up to three digits, punctuation, white space (whose last space goes to the next word)
_SPLIT = re.compile(r" ?[^\W\d_]+| ?\d{1,3}| ?[^\w\s]+|_+|\s+(?!\S)|\s")

EOS = words.SPECIALS.index("<|im_end|>")


class Tokenizer:
    """Text to token ids and back. Ids: control tokens, then 256 bytes, then the pieces of `words.pieces()`."""

    def __init__(self) -> None:
        pieces = words.pieces()
        self._bytes: list[bytes] = [s.encode() for s in words.SPECIALS]
        self._bytes += [bytes([b]) for b in range(256)]
        self._bytes += [p.encode() for p in pieces]
        self._ids = {piece: _FIRST_PIECE + n for n, piece in enumerate(pieces)}
        self._specials = {s: n for n, s in enumerate(words.SPECIALS)}
        self._longest = max(map(len, pieces))
        self.encode_word = lru_cache(maxsize=20_000)(self._encode_word)

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are; the largest is one less."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`. Spellings of control tokens are taken as such, as vLLM does in a chat prompt."""
        ids: list[int] = []
        for part in _SPECIAL_SPLIT.split(text):
            special = self._specials.get(part)
            if special is not None:
                ids.append(special)
            else:
                for word in _SPLIT.findall(part):
                    ids.extend(self.encode_word(word))
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        ids: list[int] = []
        at = 0
        while at < len(word):
            for end in range(min(len(word), at + self._longest), at, -1):
                found = self._ids.get(word[at:end])
                if found is not None:
                    ids.append(found)
                    at = end
                    break
            else:
                ids.extend(_FIRST_BYTE + b for b in word[at].encode("utf-8", "replace"))
                at += 1
        return tuple(ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; none for an id outside the vocabulary (vLLM's detokenizer skips those as well)."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 become the replacement character."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        """One token on its own, as logprobs and `token_strs` show it."""
        return self.decode((token,))

    def deltas(self, tokens: Iterable[int]) -> list[str]:
        """The text each token adds; a token that ends inside a character adds nothing until the character is whole."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.token_bytes(token)) for token in tokens]


def rng(*parts: object) -> Random:
    """A random generator that depends on `parts` and nothing else (not on the process, the platform or the hour)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return Random(int.from_bytes(digest))


def sentence(random: Random) -> str:
    """One readable sentence, now and then with a word outside ASCII."""
    adjective, noun, verb = random.choice(words.ADJECTIVES), random.choice(words.NOUNS), random.choice(words.VERBS)
    other, place = random.choice(words.NOUNS), random.choice(words.PREPOSITIONS)
    if random.random() < 0.2:
        other = random.choice(words.FOREIGN)
    shapes = (
        f"The {adjective} {noun} {verb} the {other}.",
        f"{random.choice(words.ADVERBS)}, the {noun} {verb} a {adjective} {other} {place} the {random.choice(words.NOUNS)}.",
        f"A {noun} {place} the {other} is {adjective} and {random.choice(words.ADJECTIVES)}.",
        f"Who {verb} the {other}? The {adjective} {noun} does!",
        f"There are {random.randint(2, 99)} {adjective} {_plural(noun)} {place} the {other}.",
    )
    return random.choice(shapes)


def _plural(noun: str) -> str:
    return noun[:-1] + "ies" if noun.endswith("y") else noun + "s"


def compose(tokenizer: Tokenizer, random: Random, length: int, lead: str = "") -> list[int]:
    """`length` tokens of sentences, after `lead`; the last sentence is cut where it must be."""
    ids: list[int] = []
    while len(ids) < length:
        ids += tokenizer.encode((" " if ids else lead) + sentence(random))
    return ids[:length]


def compose_whole(tokenizer: Tokenizer, random: Random, shortest: int, longest: int, lead: str = "") -> list[int]:
    """Whole sentences after `lead`, between `shortest` and `longest` tokens together (`longest` at least `shortest` + 20)."""
    target = random.randint(shortest, longest - 20)
    ids: list[int] = []
    while len(ids) < target:
        ids += tokenizer.encode((" " if ids else lead) + sentence(random))
    return ids
