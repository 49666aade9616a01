"""What a secret looks like, and what only looks like one."""

from __future__ import annotations

import pytest

from llmtap_launcher.export.secrets import disjoint, find, is_card, is_secret_name, is_set

PEM = "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("to ada@example.org.", [("email", "ada@example.org")]),
        ("ada at example.org", []),
        ("x = a @ b.T", []),
        ("call +49 30 1234567", [("phone", "+49 30 1234567")]),
        ("(415) 555-0132", [("phone", "(415) 555-0132")]),
        ("phone: 5550132", [("phone", "5550132")]),
        ("on 01-02-2026 and 2026-11-21", []),
        ("4111 1111 1111 1111", [("card", "4111 1111 1111 1111")]),
        ("378282246310005", [("card", "378282246310005")]),
        ("1234 5678 9012 3456", []),
        ("AKIAIOSFODNN7ABCDEFG", [("key", "AKIAIOSFODNN7ABCDEFG")]),
        ('password = "c0rrect-h0rse"', [("key", "c0rrect-h0rse")]),
        ("password: string", []),
        ("postgres://app:s3cr3t!@db/x", [("key", "s3cr3t!")]),
        ("https://e.org/?api_key=abcdef123456&x=1", [("key", "abcdef123456")]),
        ("mysql --password hunter22x", [("key", "hunter22x")]),
        (f"x {PEM} y", [("key", PEM)]),
        ("Bearer abc.def-ghi_0123456789", [("key", "abc.def-ghi_0123456789")]),
        ("token = settings.api_key", []),
        ("PGPASSWORD=abcdef0123456789 psql", [("key", "abcdef0123456789")]),
        ("Passwort: Geheim123!", [("key", "Geheim123!")]),
        ("secret_key_base: 0123456789abcdef", [("key", "0123456789abcdef")]),
        ("<password>hunter2X!</password>", [("key", "hunter2X!")]),
        ("curl -u admin:S3cr3tPass! https://x.org", [("key", "S3cr3tPass!")]),
        ("sshpass -p hunter2X9 ssh x", [("key", "hunter2X9")]),
        ("mysql -u root -pS3cr3tPass99", [("key", "S3cr3tPass99")]),
        ("machine x.org login ada password hunter2X9", [("key", "hunter2X9")]),
        ("Set-Cookie: session=abc123DEF456; Path=/", [("key", "session=abc123DEF456; Path=/")]),
        ("110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", [("key", "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw")]),
        ("jürgen.müller@bücher.de", [("email", "jürgen.müller@bücher.de")]),
        ("ada.lovelace＠example.org", [("email", "ada.lovelace＠example.org")]),
        ("ada at example dot org", [("email", "ada at example dot org")]),
        ("look at the dot and at a dot.", []),
        ("４１１１１１１１１１１１１１１１", [("card", "４１１１１１１１１１１１１１１１")]),
        ("wa.me/491512345678", [("phone", "491512345678")]),
    ],
)  # fmt: skip
def test_spans(text: str, found: list[tuple[str, str]]) -> None:
    assert [(kind, text[begin:end]) for begin, end, kind in find(text)] == found


def test_only_the_kinds_asked_for() -> None:
    text = "ada@example.org +49 30 1234567 4111111111111111"
    assert {kind for _, _, kind in find(text, frozenset({"card"}))} == {"card"}
    assert {kind for _, _, kind in find(text)} == {"email", "phone", "card"}


def test_cards() -> None:
    assert all(map(is_card, ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117", "3530111333300000"]))
    assert not any(map(is_card, ["4111111111111112", "1111111111111117", "0000000000000000", "4444444444444444"]))


def test_names_of_secrets() -> None:
    assert all(
        map(is_secret_name, ["password", "db_password", "api_key", "apiKey", "client_secret", "access_token", "Authorization"])
    )
    assert not any(map(is_secret_name, ["max_tokens", "keyboard", "tokens", "primary_key_name", "content"]))
    assert is_set("hunter2") and not is_set("${X}") and not is_set("")


def test_overlaps_are_one() -> None:
    assert disjoint([(5, 9, "b"), (0, 6, "a"), (20, 22, "c")]) == [(0, 9, "a"), (20, 22, "c")]
