"""The vocabulary: what the simulated model can say and what its tokenizer knows as one token.

Words are grouped by their place in a sentence (see `text.py`). The order of everything here is fixed: token ids are positions.
"""

from __future__ import annotations

#: control tokens, in the spelling of the Qwen family that vLLM's defaults are most often seen with
SPECIALS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)

ADJECTIVES = """
small large quiet bright early late simple careful steady open hidden modern ancient narrow wide gentle sharp clear
heavy light distant local useful honest patient sudden common rare warm cold empty full curious reliable
""".split()
NOUNS = """
river mountain engine library garden window market teacher sailor letter machine signal village harbour bridge forest
question answer reader writer morning evening season winter summer story clock lamp train station message number
gateway server kitchen road island castle painter doctor river bird tree stone field city house book table picture
cloud storm
""".split()
VERBS = """
follows carries reaches watches builds opens closes finds remembers describes measures crosses answers repairs
protects keeps leaves meets changes improves explains visits counts holds surprises
""".split()
ADVERBS = """
Usually Sometimes Today Later Slowly Quietly Fortunately Indeed Meanwhile Finally Often Clearly
""".split()
PREPOSITIONS = """
near behind beyond above under beside across through towards inside
""".split()
#: said now and then, so that whoever reads the stream has to handle more than ASCII
FOREIGN = [
    "café",
    "naïve",
    "Zürich",
    "München",
    "São",
    "Málaga",
    "東京",
    "こんにちは",
    "Привет",
    "señor",
    "façade",
    "Ørsted",
    "✓",
    "→",
    "🚀",
    "😀",
]

#: other frequent words of prompts, so that a prompt costs about as many tokens as a user expects
COMMON = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one
you were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off must before back see your through way where get much go well down should because
each just those people take too how good very make world still own work long hold here between both life being under
never same another know while last might us great old year come since against right came used three state city please
tell say write give list count words word story short long text about weather hello hi thanks answer question explain
summarise translate code python function class return import data model user assistant system tool tools name
arguments type object string properties required description parameters think step help need want test ten four five
six seven eight nine zero true false null Paris London Berlin Madrid Rome celsius fahrenheit unit city location date
query language English German French number sentence paragraph example reply message chat token tokens stream request
response pong Hello What Who Why How When Where The A An In It Is I You We They He She Tell Say Write Give List Count
Please This That Here There model asked asks wants let me start by thinking Let short
""".split()

PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
#: what JSON and code are made of; with these a tool call's arguments come in the fragments seen from real tokenizers
FRAGMENTS = [
    '{"',
    '":',
    ' "',
    '",',
    '"}',
    '"}}',
    "},",
    " {",
    "[[",
    "]]",
    "\n\n",
    "\n",
    "  ",
    "    ",
    "...",
    "```",
    "://",
    "()",
    "'s",
    "'t",
    " -",
    " =",
    " ==",
]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SUFFIXES = """
ing tion ness ment able ible ally less ful ous ive est ers ies ate ent ant ish ward ship ized ise ize com con pre pro
dis mis sub inter trans over under
""".split()


def pieces() -> list[str]:
    """Every token that is not a control token or a bare byte, in id order."""
    words: list[str] = []
    for group in (NOUNS, ADJECTIVES, VERBS, ADVERBS, PREPOSITIONS, COMMON, FOREIGN):
        words += group
    cased = [form for word in words for form in (word, word.capitalize())]
    pairs = [a + b for a in _LETTERS for b in _LETTERS]
    plain = [*PUNCTUATION, *FRAGMENTS, *_LETTERS.upper(), *(str(n) for n in range(1000)), *_SUFFIXES, *pairs]
    spaced = [" " + word for word in [*cased, *_LETTERS, *_LETTERS.upper(), *pairs]]
    return list(dict.fromkeys([*plain, *cased, *spaced]))
