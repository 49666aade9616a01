"""Secrets in the places where they are found, and texts without any: what redaction is measured on.

Everything is made by a seeded generator in the shape of the real thing; no secret in here was ever anybody's.
"""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass
from typing import Any

_ALNUM = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Planted:
    """A secret in its place: `value` is put into an export, `kind` is what it is, none of `forms` may come out again."""

    kind: str
    value: Any
    forms: tuple[str, ...]


def _some(dice: random.Random, n: int, alphabet: str = _ALNUM) -> str:
    text = "".join(dice.choice(alphabet) for _ in range(n))
    return text if any(c.isdigit() for c in text) else text[:-1] + "7"


def key(dice: random.Random) -> str:
    upper = string.ascii_uppercase + string.digits
    makers = (
        lambda: f"sk-{_some(dice, 48)}",
        lambda: f"sk-proj-{_some(dice, 60)}",
        lambda: f"sk-ant-api03-{_some(dice, 80)}",
        lambda: f"ghp_{_some(dice, 36)}",
        lambda: f"github_pat_{_some(dice, 22)}_{_some(dice, 40)}",
        lambda: f"glpat-{_some(dice, 20)}",
        lambda: f"xoxb-{_some(dice, 12, string.digits)}-{_some(dice, 24)}",
        lambda: f"AKIA{_some(dice, 16, upper)}",
        lambda: f"AIza{_some(dice, 35)}",
        lambda: f"hf_{_some(dice, 34)}",
        lambda: f"sk_live_{_some(dice, 24)}",
        lambda: f"npm_{_some(dice, 36)}",
        lambda: f"SG.{_some(dice, 22)}.{_some(dice, 43)}",
        lambda: f"eyJ{_some(dice, 20)}.eyJ{_some(dice, 40)}.{_some(dice, 43)}",
        lambda: f"gsk_{_some(dice, 40)}",
    )
    return dice.choice(makers)()


def email(dice: random.Random) -> str:
    name = dice.choice(("ada.byron", "k.goedel", "emmy_noether", "alan+news", "g.hopper1906", "li-wei"))
    host = dice.choice(("gmail.com", "mail.example.co.uk", "uni-bonn.de", "acme-corp.io", "sub.dept.university.edu"))
    return f"{name}{dice.randrange(100)}@{host}"


def phone(dice: random.Random) -> str:
    d = lambda n: _some(dice, n, string.digits)  # noqa: E731
    return dice.choice(
        (
            f"+49 30 {d(4)} {d(4)}",
            f"+1 (415) 5{d(2)}-{d(4)}",
            f"(2{d(2)}) 5{d(2)}-{d(4)}",
            f"3{d(2)}-4{d(2)}-{d(4)}",
            f"+44 20 7{d(3)} {d(4)}",
            f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}",
            f"0{dice.randrange(20, 99)} {d(7)}",
            f"+81-3-{d(4)}-{d(4)}",
        )
    )


def card(dice: random.Random) -> str:
    head, length = dice.choice(
        (("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("3530", 16))
    )
    digits = head + "".join(dice.choice(string.digits) for _ in range(length - len(head) - 1))
    total = sum(v - 9 if (v := int(c) * (2 - at % 2)) > 9 else v for at, c in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def _grouped(digits: str, between: str) -> str:
    sizes = (4, 6, 5) if len(digits) == 15 else (4, 4, 4, 4)
    out, at = [], 0
    for size in sizes:
        out.append(digits[at : at + size])
        at += size
    return between.join(out)


def _in_text(dice: random.Random, kind: str, secret: str) -> Any:
    """A natural place for it."""
    label = {"key": "the key is", "email": "write to", "phone": "call me at", "card": "my card is"}[kind]
    places = (
        f"Sure, {label} {secret}, thanks!",
        f"{label}: **{secret}**",
        f"`{secret}`",
        f"> {secret}\n\nas discussed",
        f"Here is what I have:\n\n| what | value |\n|---|---|\n| {kind} | {secret} |",
        f"<p>{label} <b>{secret}</b></p>",
        f'def go():\n    value = "{secret}"  # {kind}\n    return value',
        f"export VALUE='{secret}'\ncurl https://api.example.org/v1",
        f"config:\n  {kind}: {secret}\n  retries: 3",
        f'{{"user": "ada", "value": "{secret}"}}',
        json.dumps({"order": {"notes": [f"{label} {secret}"]}}),
        json.dumps({"payload": json.dumps({"inner": {"value": secret}})}),
        f"({secret})",
        f"{secret}",
        f"INSERT INTO users VALUES (7, '{secret}');",
        f"// {label} {secret}\nconst x = 1;",
    )
    return dice.choice(places)


def _split(dice: random.Random, kind: str, secret: str) -> tuple[str, str]:
    """The secret set in another way: the text it is in, and what of it may not come out."""
    if kind == "email":
        name, host = secret.split("@")
        odd = dice.choice(
            (
                f"{name} [at] {host.replace('.', ' [dot] ')}",
                f"{name} (at) {host}",
                f"{name}&#64;{host}",
                f"https://example.org/?to={name}%40{host}&x=1",
                f"{name}\u200b@{host}",
                f"**{name}**@{host}",
                f"mailto:{secret}",
                f"{name}@\u200b{host}",
            )
        )
        return f"reach me: {odd} any time", name
    if kind == "card":
        odd = dice.choice(
            (
                _grouped(secret, " "),
                _grouped(secret, "-"),
                _grouped(secret, "\u00a0"),
                _grouped(secret, "."),
                f"**{_grouped(secret, '** **')}**",
                _grouped(secret, "\n"),
                _grouped(secret, "\u200b"),
            )
        )
        return f"charge it to {odd} please", odd
    if kind == "phone":
        odd = dice.choice(
            (secret.replace(" ", "\u00a0"), secret.replace(" ", "\u2009"), f"**{secret}**", secret.replace(" ", "."))
        )
        return f"my phone: {odd}!", odd
    half = len(secret) // 2
    odd = dice.choice(
        (
            f'key = "{secret[:half]}" + "{secret[half:]}"',
            f'key = (\n    "{secret[:half]}"\n    "{secret[half:]}"\n)',
            f"{secret[:half]}\u200b{secret[half:]}",
            f"{secret[:half]}<wbr>{secret[half:]}",
            f"KEY={secret[:half]}\\\n{secret[half:]}",
            f"**{secret[:half]}**{secret[half:]}",
        )
    )
    return odd, secret[half:]


def planted(count: int = 500, seed: int = 7) -> list[Planted]:
    """So many, of every kind and in every kind of place."""
    dice = random.Random(seed)
    out: list[Planted] = []
    makers = {"key": key, "email": email, "phone": phone, "card": card}
    for number in range(count):
        kind = ("key", "email", "phone", "card")[number % 4]
        secret = makers[kind](dice)
        how = number // 4 % 5
        if how == 4:
            text, form = _split(dice, kind, secret)
            out.append(Planted(kind, text, (form,)))
        elif how == 3 and kind == "key":
            word = _some(dice, 20, _ALNUM + "!$%")
            named = dice.choice(
                (
                    {"password": word},
                    {"arguments": json.dumps({"db": {"password": word, "port": 5432}})},
                    f'password = "{word}"',
                    f"postgres://app:{word.replace('%', '').replace('!', '')}@db.internal:5432/app",
                    f"Authorization: Bearer {_some(dice, 40)}",
                )
            )
            form = word if "Bearer" not in str(named) else str(named).rsplit(" ", 1)[1]
            form = form.replace("%", "").replace("!", "") if "postgres" in str(named) else form
            out.append(Planted(kind, named, (form,)))
        elif how == 3 and kind == "card":
            out.append(Planted(kind, {"arguments": json.dumps({"card_number": int(secret), "cvc": 123})}, (secret,)))
        elif how == 3 and kind == "email":
            escaped = json.dumps({"to": secret}).replace("@", "\\u0040")
            out.append(Planted(kind, {"arguments": escaped}, (secret.split("@")[0],)))
        else:
            out.append(Planted(kind, _in_text(dice, kind, secret), (secret,)))
    return out
