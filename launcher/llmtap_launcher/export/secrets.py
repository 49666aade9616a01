"""What a secret looks like in a text: keys and passwords, e-mail addresses, telephone numbers, payment cards.

`find` gives the spans of one text. A secret may be split by formatting: a blank, a soft hyphen, bold letters, a line break, two
string literals in code. So separators are part of the patterns of numbers, and keys are looked for a second time in the text
without what can stand inside them. Each pattern is behind a test that costs next to nothing, as most texts hold no secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

KINDS = ("key", "email", "phone", "card")

#: begin, end, kind
Span = tuple[int, int, str]

#: what is not seen, or only sets letters bold
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"

# ---- keys

#: a literal that stands in every key of a kind, and the whole key
_KEYS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        ("sk-", r"\bsk-[A-Za-z0-9_-]{16,}"),
        ("_live_", r"\b[a-z]{2,5}_live_[A-Za-z0-9]{10,}"),
        ("_test_", r"\b(?:sk|pk|rk|whsec)_test_[A-Za-z0-9]{10,}"),
        ("whsec_", r"\bwhsec_[A-Za-z0-9+/=]{16,}"),
        *((f"gh{kind}_", rf"\bgh{kind}_[A-Za-z0-9]{{30,}}") for kind in "pousr"),
        ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{30,}"),
        ("glpat-", r"\bglpat-[A-Za-z0-9_-]{16,}"),
        ("xox", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        ("xapp-", r"\bxapp-[A-Za-z0-9-]{16,}"),
        ("hooks.slack.com", r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,}"),
        ("AKIA", r"\bAKIA[A-Z0-9]{16}\b"),
        ("ASIA", r"\bASIA[A-Z0-9]{16}\b"),
        ("AIza", r"\bAIza[A-Za-z0-9_-]{30,}"),
        ("ya29.", r"\bya29\.[A-Za-z0-9_-]{20,}"),
        ("GOCSPX-", r"\bGOCSPX-[A-Za-z0-9_-]{20,}"),
        ("hf_", r"\bhf_[A-Za-z0-9]{20,}"),
        ("npm_", r"\bnpm_[A-Za-z0-9]{30,}"),
        ("pypi-", r"\bpypi-[A-Za-z0-9_-]{30,}"),
        ("SG.", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
        ("gsk_", r"\bgsk_[A-Za-z0-9]{20,}"),
        ("xai-", r"\bxai-[A-Za-z0-9]{20,}"),
        ("r8_", r"\br8_[A-Za-z0-9]{20,}"),
        ("nvapi-", r"\bnvapi-[A-Za-z0-9_-]{20,}"),
        ("pplx-", r"\bpplx-[A-Za-z0-9]{20,}"),
        ("dop_v1_", r"\bdop_v1_[a-f0-9]{40,}"),
        ("shpat_", r"\bshpat_[a-fA-F0-9]{20,}"),
        (":AA", r"\b\d{8,10}:AA[A-Za-z0-9_-]{30,40}"),
        ("AGE-SECRET-KEY-", r"\bAGE-SECRET-KEY-1[A-Z0-9]{40,}"),
        ("eyJ", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
        (
            "PRIVATE KEY",
            r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
        ),
    )
)
#: what may stand inside a key that was set over two lines, in two literals, in bold letters
_GLUE = re.compile(
    rf"[{_INVISIBLE}*`]+|</?(?:b|i|em|strong|code|span|wbr)\b[^>]{{0,40}}>"
    r"|[\"'][ \t]*[+.]?[ \t]*\\?\r?\n?[ \t]*[fbru]?[\"']"
    # the next line begins with what looks like the rest: long, and not a word
    r"|\\\r?\n[ \t]*|\r?\n[ \t>#|]*(?=[A-Za-z0-9_./+=-]*[0-9])(?=[A-Za-z0-9_./+=-]{8})"
)

_NAMES = (
    r"(?:pg|db|user|root|admin|sudo)?pass(?:word|wd|phrase|code)?|passwort|pwd|pw|secret(?:[_-]key[_-]base)?"
    r"|(?:api|access|private|secret|auth|account|signing|encryption|master)[_\- ]?key"
    r"|(?:access|auth|refresh|bearer|session|id|api|bot)?[_\- ]?token|client[_\- ]?secret|credentials?|authorization"
)
#: a name that says it is a secret, and what it is set to
_SET_TO = re.compile(
    rf"(?i)(?<![a-z])(?:{_NAMES})(?![a-z])[\"'`\])*]{{0,3}}[ \t]{{0,4}}(?::=|=>|[:=]|\bis\b:?)[ \t]{{0,4}}"
    r"(?:(?:bearer|basic|token)[ \t]+)?"
    r"(?:\\?[\"'`*]{1,2}(?P<quoted>[^\"'`\r\n]{4,200}?)\\?[\"'`*]|(?P<bare>[^\s\"'`,;&<>(){}\[\]]{6,200}))"
)
_SET_LITERALS = ("pass", "pwd", "pw", "secret", "key", "token", "credential", "authorization")
_BEARER = re.compile(r"(?i)\b(?:bearer|basic)[ \t]+(?P<bare>[A-Za-z0-9._~+/=-]{12,})")
_IN_URL = re.compile(r"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,100}:(?P<bare>[^\s/@\"'<>]{3,200})@")
_QUERY = re.compile(r"(?i)[?&](?:[a-z_-]*(?:key|token|secret|signature|password|sig))=(?P<bare>[^\s&\"'<>#]{8,})")
#: <password>…</password>
_ELEMENT = re.compile(rf"(?i)<(?P<name>{_NAMES})>[ \t]*(?P<bare>[^<>\r\n]{{4,200}}?)[ \t]*</(?P=name)>")
#: curl -u name:…, sshpass -p …, mysql -p…, a line of .netrc
_ARGUMENT = re.compile(
    r"(?i)\b(?:(?:curl|wget|http)\b[^\n|;]{0,200}?[ \t](?:-u|--user)[ =]?[\"']?[\w.@-]{1,60}:(?P<user>[^\s\"'`]{4,100})"
    r"|sshpass[ \t]+-p[ \t]*[\"']?(?P<ssh>[^\s\"'`]{4,100})"
    r"|mysql(?:dump|admin)?\b[^\n|;]{0,100}?[ \t]-p[\"']?(?P<sql>[^\s\"'`-][^\s\"'`]{3,100})"
    r"|\blogin[ \t]+\S{1,60}[ \t\r\n]+password[ \t]+(?P<netrc>\S{4,100}))"
)
_COOKIE = re.compile(r"(?i)\b(?:set-)?cookie2?[\"']?[ \t]{0,2}:[ \t]{0,2}[\"']?(?P<bare>[^\s\"'`=;]{1,60}=[^\r\n\"'`]{8,2000})")
_FLAG = re.compile(r"(?i)(?<![\w-])--?(?:password|token|api-key|secret|pass)[ =](?P<bare>[^\s\"'`]{6,})")
_COMMANDS = ("curl", "wget", "http", "sshpass", "mysql", "login")
#: values that name a secret, or stand for one
_HOLDER = re.compile(
    r"(?i)\$[{(]|\$[a-z_]+\Z|%\(|%[sd]\b|%[a-z_]+%\Z|<|\{\{|\*{3}|x{4}|\.\.\.|…|your|my[_-]|example|placeholder|changeme|redacted|none\b|null\b|true\b|false\b"
    r"|os\.|env\b|env\[|process\.|getenv|config|settings|self\.|args\.|request\.|str\b|string\b|int\b|bool\b|optional|required|field\b"
    r"|\[[A-Z]+\]|[a-z_]+\(|[a-z_]+(?:\.[a-z_]+)+(?:\Z|[(\[])"
)


def _keys(text: str) -> Iterator[Span]:
    for literal, pattern in _KEYS:
        if literal in text:
            for found in pattern.finditer(text):
                yield found.start(), found.end(), "key"


def _set_to(text: str) -> Iterator[Span]:
    """Values of what is called a secret: not the name, and not what only stands for a value."""
    lower = text.lower()
    if any(literal in lower for literal in _SET_LITERALS):
        for found in _SET_TO.finditer(text):
            group = "quoted" if found["quoted"] is not None else "bare"
            if _is_value(found[group], quoted=group == "quoted"):
                yield found.start(group), found.end(group), "key"
    named = any(literal in lower for literal in (*_SET_LITERALS, "sig"))
    for wanted, pattern in (
        ("bearer" in lower or "basic" in lower, _BEARER),
        ("://" in text and "@" in text, _IN_URL),
        (named and "=" in text, _QUERY),
        (named and "-" in text, _FLAG),
        (named and "</" in text, _ELEMENT),
        (any(command in lower for command in _COMMANDS), _ARGUMENT),
        ("cookie" in lower, _COOKIE),
    ):
        if wanted:
            for found in pattern.finditer(text):
                group = found.lastgroup or "bare"
                if pattern is _COOKIE or _is_value(found[group], quoted=False):
                    yield found.start(group), found.end(group), "key"


def _is_value(value: str, *, quoted: bool) -> bool:
    if _HOLDER.match(value) or len(value.strip()) < 4:
        return False
    mixed = sum((any(c.isdigit() for c in value), any(c.islower() for c in value), any(c.isupper() for c in value)))
    odd = any(not c.isalnum() and c not in " .,:_-" for c in value)
    if " " in value.strip():
        return False  # a sentence
    # a plain word is a description (`token: string`), not a secret
    return mixed + odd >= 2 and (any(c.isdigit() for c in value) or odd or (quoted and mixed >= 2))


def is_secret_name(name: str) -> bool:
    """Whether what is stored under this name is a secret by its name alone."""
    return re.fullmatch(rf"(?i)(?:[a-z0-9]*[_-])?(?:{_NAMES})", name) is not None and not name.lower().startswith("max")


def is_set(value: str) -> bool:
    """Whether a value under such a name is one, and no reference to one or empty."""
    return len(value.strip()) >= 4 and _HOLDER.match(value) is None


# ---- addresses

_ENDS = r"(?=[\w.-]+\.(?:com|org|net|edu|gov|io|de|fr|uk|eu)\b)"
#: … at example dot org
_SPELLED = r"(?=(?:[\w-]+[ \t]+(?:dot|DOT)[ \t]+){1,4}(?:com|org|net|edu|gov|io|de|fr|uk|eu|COM|ORG|NET)\b)"
_AT = (
    rf"(?:[{_INVISIBLE}]*@[{_INVISIBLE}]*|&#64;|&commat;|%40|\\u0040|[ \t]*[\[(<{{][ \t]*(?:at|@|AT)[ \t]*[\])>}}][ \t]*"
    rf"|[ \t]+@[ \t]*{_ENDS}|@[ \t]+{_ENDS}|＠|[ \t]+(?:at|AT)[ \t]+{_SPELLED})"
)
_DOT = (
    rf"(?:[{_INVISIBLE}]*\.[{_INVISIBLE}]*|&#46;|[ \t]+(?:dot|DOT)[ \t]+|[ \t]*[\[(<{{][ \t]*(?:dot|\.|DOT)[ \t]*[\])>}}][ \t]*)"
)
_LABEL = rf"(?:[^\W_]|[{_INVISIBLE}])(?:(?:[^\W_]|[{_INVISIBLE}-]){{0,60}}[^\W_])?"
_EMAIL = re.compile(
    rf"(?:\*\*|[`*])?(?:[^\W_]|[_+])(?:[\w.%+'{_INVISIBLE}-]|\*\*|&#46;|[ \t]?[\[(](?:dot|\.)[\])][ \t]?){{0,80}}?{_AT}"
    rf"(?:\*\*|[`*])?(?:{_LABEL}{_DOT}(?:\*\*|[`*])?){{1,5}}[A-Za-z]{{2,24}}(?![\w@])"
)
_EMAIL_LITERALS = (
    "@",
    "&#64;",
    "%40",
    "&commat;",
    "at]",
    "at)",
    "AT]",
    "at }",
    "at ]",
    "at )",
    "\\u0040",
    "＠",
    " dot ",
    " DOT ",
)


def _emails(text: str) -> Iterator[Span]:
    if any(literal in text for literal in _EMAIL_LITERALS):
        for found in _EMAIL.finditer(text):
            yield found.start(), found.end(), "email"


# ---- numbers

_BETWEEN = rf"[ \t.\-–‑/*_`·\u00a0\u2009\u202f{_INVISIBLE}]"
_CARD = re.compile(
    rf"(?<![\w.+-])\d(?:(?:{_BETWEEN}|\\?\r?\n[ \t]*|[\"'][ \t]*[+,]?[ \t]*[\"']){{0,5}}\d){{11,18}}(?![\w-]|\.\d)"
)
#: +49 30 1234567, 0049 …, also %2B
_ABROAD = re.compile(rf"(?<![\w+])(?:\+|%2[Bb]|00)[{_INVISIBLE}]?[1-9](?:(?:{_BETWEEN}|[()]){{0,3}}\d){{6,14}}(?![\w]|\.\d)")
#: (415) 555-0132, 415.555.0132
_AMERICAN = re.compile(
    rf"(?<![\w.+-])(?:1{_BETWEEN}{{1,2}})?(?:\([2-9]\d\d\){_BETWEEN}{{0,4}}|[2-9]\d\d{_BETWEEN}{{1,4}})[2-9]\d\d{_BETWEEN}{{1,4}}\d{{4}}(?![\w-]|\.\d)"
)
#: 030 1234567, (089) 123 456, 06 12 34 56 78
_NATIONAL = re.compile(
    rf"(?<![\w.+:/-])(?:\(0\d{{1,4}}\)|0[1-9]\d{{0,3}}(?={_BETWEEN}))(?:(?:{_BETWEEN}|[ ][-/–][ ])?\d){{5,9}}(?![\w:-]|\.\d)"
)
#: what is called a telephone
_CALLED = re.compile(
    r"(?i)\b(?:tele)?(?:phone|fon)(?:[_ -]?(?:number|nr|no))?\b"
    r"|\b(?:tel|mobile?|cell|fax|whatsapp|wa\.me|sms|handy|call(?: me at)?)\b"
)
_AFTER_CALLED = re.compile(rf"[^\d\n]{{0,12}}?(?P<bare>[(+]?\d(?:(?:{_BETWEEN}|[()]){{0,3}}\d){{6,14}})(?!\w)")
_FRACTION = re.compile(r"\d+\.\d+")
_MONTH, _DAY, _YEAR = r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d\d"
_DATE = re.compile(rf"{_YEAR}[-/. ]{_MONTH}[-/. ]{_DAY}|{_DAY}[-/. ]{_MONTH}[-/. ]{_YEAR}")


#: a stretch of figures long enough for either, with what may stand between them
_RUN = re.compile(rf"\d(?:(?:{_BETWEEN}|[()\r\n\\\"',+]){{0,8}}\d){{6,}}")
#: before a stretch: what belongs to its number
_BEFORE = 4


def _cards(text: str, runs: list[tuple[int, int]]) -> Iterator[Span]:
    for begin, end in runs:
        for found in _CARD.finditer(text, begin, end):
            digits = "".join(str(int(c)) for c in found[0] if c.isdecimal())  # whatever the script
            if is_card(digits) and not _FRACTION.fullmatch(found[0]):
                yield found.start(), found.end(), "card"


def is_card(digits: str) -> bool:
    """Whether it is a card's number: a known issuer's beginning and length, and its check digit (Luhn) right."""
    length, head = len(digits), int(digits[:4])
    known = (
        (digits[0] == "4" and length in (13, 16, 19))
        or ((51 <= head // 100 <= 55 or 2221 <= head <= 2720) and length == 16)
        or (head // 100 in (34, 37) and length == 15)
        or (head // 100 in (36, 38, 39) and length in (14, 16))
        or (300 <= head // 10 <= 305 and length == 14)
        or ((head == 6011 or 644 <= head // 10 <= 649 or head // 100 == 65) and 16 <= length <= 19)
        or (3528 <= head <= 3589 and 16 <= length <= 19)
        or (head // 100 in (62, 81) and 16 <= length <= 19)
        or (head // 100 in (50, 56, 57, 58, 63, 67) and 12 <= length <= 19)
    )
    if not known or len(set(digits)) == 1:
        return False
    total = 0
    for at, char in enumerate(reversed(digits)):
        value = int(char) * (1 + at % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _phones(text: str, runs: list[tuple[int, int]]) -> Iterator[Span]:
    for begin, end in runs:
        for pattern in (_ABROAD, _AMERICAN, _NATIONAL):
            for found in pattern.finditer(text, max(0, begin - _BEFORE), end):
                number = found[0]
                dated = pattern is not _ABROAD and _DATE.search(number)
                if not dated and "\n" not in number and not _FRACTION.fullmatch(number.lstrip("+")):
                    yield found.start(), found.end(), "phone"
    for called in _CALLED.finditer(text):
        after = _AFTER_CALLED.match(text, called.end())
        if after is not None and not _DATE.search(after["bare"]):
            yield after.start("bare"), after.end("bare"), "phone"


# ---- all together


def find(text: str, kinds: frozenset[str] = frozenset(KINDS)) -> list[Span]:
    """Where the secrets of these kinds are, in order, without overlaps (a longer one wins)."""
    spans: list[Span] = []
    if "email" in kinds:
        spans.extend(_emails(text))
    if "phone" in kinds or "card" in kinds:
        runs = [(found.start(), min(len(text), found.end() + 2)) for found in _RUN.finditer(text)]
        if runs and "card" in kinds:
            spans.extend(_cards(text, runs))
        if runs and "phone" in kinds:
            spans.extend(_phones(text, runs))
    if "key" in kinds:
        spans.extend(_keys(text))
        spans.extend(_set_to(text))
        spans.extend(_glued(text))
    return disjoint(spans)


def _glued(text: str) -> Iterator[Span]:
    """Keys in the text without what may stand inside one, in the text's own places."""
    # the beginning itself may be split
    if not any(literal in text for literal, _ in _KEYS) and not any(mark in text for mark in (*_INVISIBLE, "**", "<b>", "<wbr>")):
        return
    pieces, starts = [], []
    at = length = 0
    for glue in _GLUE.finditer(text):
        pieces.append(text[at : glue.start()])
        starts.append((length, at))
        length += glue.start() - at
        at = glue.end()
    if not pieces:
        return
    pieces.append(text[at:])
    starts.append((length, at))
    whole = "".join(pieces)
    if whole == text:
        return
    for begin, end, kind in _keys(whole):
        yield _back(begin, starts), _back(end - 1, starts) + 1, kind


def _back(at: int, starts: list[tuple[int, int]]) -> int:
    low, high = 0, len(starts)
    while high - low > 1:
        middle = (low + high) // 2
        if starts[middle][0] <= at:
            low = middle
        else:
            high = middle
    return starts[low][1] + at - starts[low][0]


def disjoint(spans: list[Span]) -> list[Span]:
    """In order, those that overlap as one."""
    if len(spans) < 2:
        return spans
    out: list[Span] = []
    for begin, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
        if out and begin < out[-1][1]:
            last = out[-1]
            if end > last[1]:
                out[-1] = (last[0], end, last[2])
            continue
        out.append((begin, end, kind))
    return out
