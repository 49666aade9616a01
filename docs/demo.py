"""Builds a demo capture folder: recorded exchanges of real servers, and some weeks of made-up traffic in front of them.

    python docs/demo.py [FOLDER]

Everything goes the gateway's own way: spool records, the writer, the database. FOLDER (default: llmtap-data/demo) must not hold
a capture yet. The same every time: nothing in it is by chance or from the clock.
"""

from __future__ import annotations

import random
import struct
import sys
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("addons", "launcher", "tests")]

import orjson  # noqa: E402

from llmtap.core.config import Price  # noqa: E402
from llmtap.core.feedback import Rating  # noqa: E402
from llmtap.core.feedback import encode as encode_feedback  # noqa: E402
from llmtap.core.record import Choice, ToolCall  # noqa: E402
from llmtap.policy.pricing import own_rates  # noqa: E402
from llmtap_launcher.importing.entries import Entry, Malformed, records  # noqa: E402
from llmtap_launcher.importing.web import inference_path  # noqa: E402
from llmtap_launcher.store.options import Options  # noqa: E402
from support import recordings  # noqa: E402
from support.captures import START_US, Captures, weather  # noqa: E402

CONVERSATIONS = 1200
_DAYS = 21
MODELS = ("qwen3-8b", "qwen3-8b", "llama-3.1-8b", "sim-small")
KEYS = ("production", "production", "ci", "notebook")

_SQL = "SELECT customer, sum(amount) FROM sales"
#: a system prompt and what is said below it; {} takes a word of `_WORDS`
THEMES: tuple[tuple[str | None, tuple[tuple[str, str], ...]], ...] = (
    (
        "You are the help desk of an online shop. Be kind and brief.",
        (
            ("Where is my order of the {}?", "The {} left our warehouse this morning and arrives in two days."),
            ("Can I still change the address?", "Yes, until it is with the courier. Which address should it be?"),
            ("The one in my profile, please. Mine is ada.byron@example.org", "Done: it goes to the address in your profile."),
            ("Thank you!", "You are welcome. Enjoy the {}!"),
        ),
    ),
    (
        "You write SQL for PostgreSQL. Answer with the query only.",
        (
            ("Top three customers by revenue of the {}", f"{_SQL} GROUP BY 1 ORDER BY 2 DESC LIMIT 3;"),
            ("Only this year", f"{_SQL} WHERE at >= date_trunc('year', now()) GROUP BY 1 ORDER BY 2 DESC LIMIT 3;"),
            ("By month", "SELECT date_trunc('month', at) AS month, sum(amount) FROM sales GROUP BY 1 ORDER BY 1;"),
        ),
    ),
    (
        None,
        (
            ("Why is the sky blue?", "Air scatters short wavelengths of sunlight most, so blue comes from everywhere."),
            ("And at sunset?", "The light comes a longer way through the air, and the blue is scattered out before it arrives."),
        ),
    ),
    (
        "You are a patient tutor for beginners.",
        (
            ("Explain prefix caching with a {}", "Every story begins with the same {}: you read it once and remember it."),
            ("What does that save?", "The work for the common beginning; only what is new is computed."),
            ("Give me an exercise", "Two prompts share 900 of 1000 tokens. How many are computed for the second one?"),
            ("100?", "Right: 100."),
            ("One more, harder", "Three prompts of 1000 share 500 tokens, two of them 800. How many are computed?"),
        ),
    ),
    (None, (("Translate to French: the {} is ready", "Le {} est prêt."), ("And to German", "Das {} ist fertig."))),
    (
        "Summarise tickets in one line.",
        (("The export of the {} fails on Mondays, since the key sk-live4f9a8b7c6d5e4f3a2b1c expired. Call +49 30 9018 2070.",
          "The weekly export of the {} fails since a key expired; the reporter wants a call."),),
    ),
)  # fmt: skip
_WORDS = "lamp kettle bicycle telescope piano drone teapot desk camera notebook tent guitar".split()
_REASONS = (
    "The user wants it short.",
    "Two steps: look at what was asked, then answer in one line.",
    "Nothing has to be looked up.",
)

SEARCH = {
    "type": "function",
    "function": {
        "name": "search_orders",
        "description": "Orders of a customer.",
        "parameters": {
            "type": "object",
            "properties": {"customer": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["customer"],
        },
    },
}


def prices() -> Options:
    """What the demo's models cost."""
    rates = [
        Price(model="qwen3-8b", input_usd_per_million=0.1, output_usd_per_million=0.4, cached_usd_per_million=0.02),
        Price(model="llama-3.1-8b", input_usd_per_million=0.05, output_usd_per_million=0.2),
    ]
    return Options(own_rates(rates))


def fill(captures: Captures, conversations: int = CONVERSATIONS) -> list[str]:
    """All of it; returns the uids of the last conversation, the one with the weather."""
    dice = random.Random(7)
    recorded(captures)
    step = _DAYS * 86_400_000_000 // max(1, conversations)
    for number in range(conversations):
        conversation(captures, dice, START_US - (conversations - number) * step + dice.randrange(step // 2))
    captures.store()
    return weather(captures)


def recorded(captures: Captures) -> int:
    """Every recording with a request that is inference, a day before everything else; how many."""
    count = 0
    at_us = START_US - (_DAYS + 1) * 86_400_000_000
    for name in recordings.names():
        it = recordings.load(name)
        path = inference_path(it.path.partition("?")[0])
        if path is None or not it.request_body:
            continue
        at_us += 11_000_000
        entry = Entry(
            name,
            at_us,
            path,
            it.request_body,
            reply=it.body,
            content_type=it.content_type,
            status=it.status,
            error=None if it.complete or it.status >= 400 else "the connection was cut",
            duration_ms=640.0,
            key_name="recordings",
            backend=name.partition("/")[0],
            tags=["recorded"],
        )
        try:
            for record in records(entry):
                captures.write(record)
        except Malformed:
            continue  # requests that are wrong on purpose
        count += 1
    captures.store()
    return count


def conversation(captures: Captures, dice: random.Random, at_us: int) -> None:
    """One, of one to five turns: asked again, with tools, with a picture, broken off or rated now and then."""
    model, key, word = dice.choice(MODELS), dice.choice(KEYS), dice.choice(_WORDS)
    said: list[dict[str, Any]] = []
    system, turns = dice.choice(THEMES)
    asked: dict[str, Any] = {"model": model, "key_name": key, "temperature": dice.choice((0.0, 0.7, 1.0))}
    if dice.random() < 0.15:
        asked["tags"] = [dice.choice(("beta", "eval"))]
    if system is not None:
        said.append({"role": "system", "content": system})
    if system is not None and "shop" in system and dice.random() < 0.5:
        asked["tools"] = [SEARCH]
    for number, (question, answer) in enumerate(turns[: dice.randint(1, len(turns))]):
        question, answer = question.replace("{}", word), answer.replace("{}", word)
        content: Any = question
        if number == 0 and dice.random() < 0.04:
            content = [
                {"type": "text", "text": question},
                {"type": "image_url", "image_url": {"url": picture(dice.randrange(6))}},
            ]
        said.append({"role": "user", "content": content})
        at_us += dice.randrange(5_000_000, 90_000_000)
        if number == 0 and "tools" in asked:
            call = ToolCall(
                0, f"call_{dice.randrange(16**8):08x}", name="search_orders", arguments='{"customer":"ada","limit":3}'
            )
            choice = Choice(0, tool_calls=[call], finish_reason="tool_calls")
            captures.exchange(said, choice, asked=asked | {"at_us": at_us}, **timing(dice, model, 24))
            function = {"name": call.name, "arguments": call.arguments}
            said.append(
                {"role": "assistant", "content": None, "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
            )
            said.append(
                {
                    "role": "tool",
                    "tool_call_id": call.id,
                    "content": orjson.dumps({"orders": [{"item": word, "state": "sent"}]}).decode(),
                }
            )
            at_us += dice.randrange(1_000_000, 5_000_000)
        luck = dice.random()
        if luck < 0.04 and trouble(captures, dice, said, asked | {"at_us": at_us}, answer):
            return
        thoughts = dice.choice(_REASONS) if model == "qwen3-8b" and dice.random() < 0.6 else None
        choice = Choice(0, content=answer, reasoning=thoughts, finish_reason="length" if luck > 0.985 else "stop")
        uid = captures.exchange(said, choice, asked=asked | {"at_us": at_us}, **timing(dice, model, len(answer) // 4 + 9))
        rate(captures, dice, uid, at_us + 30_000_000, answer)
        if dice.random() < 0.08:  # asked again, answered otherwise, and the two compared
            other = f"I am not sure about the {word}."
            again = captures.exchange(said, other, asked=asked | {"at_us": at_us + 20_000_000}, **timing(dice, model, 12))
            captures.write(encode_feedback(Rating(uid, at_us + 60_000_000, "thumb", "user", 1.0)))
            captures.write(encode_feedback(Rating(again, at_us + 60_000_000, "thumb", "user", -1.0)))
        said.append({"role": "assistant", "content": answer})


def rate(captures: Captures, dice: random.Random, uid: str, at_us: int, answer: str) -> None:
    """What people and a judge say of a reply, sometimes."""
    luck = dice.random()
    if luck < 0.1:
        captures.write(encode_feedback(Rating(uid, at_us, "thumb", "user", 1.0 if luck < 0.08 else -1.0)))
    if luck < 0.03:
        captures.write(encode_feedback(Rating(uid, at_us, "helpfulness", "judge", float(dice.randint(1, 5)))))
    if luck > 0.99:
        correction = {"content": f"{answer} (Checked by a person.)"}
        captures.write(encode_feedback(Rating(uid, at_us, "thumb", "user", -1.0, comment="not exact", correction=correction)))


def trouble(captures: Captures, dice: random.Random, said: list[dict[str, Any]], asked: dict[str, Any], answer: str) -> bool:
    """A request that went wrong; returns whether the conversation ends there."""
    kind = dice.randrange(3)
    if kind == 0:
        error = {
            "status": 503,
            "error_type": "no_healthy_backend",
            "error_message": f"no healthy backend serves {asked['model']}",
        }
        captures.exchange(said, asked=asked, outcome="rejected", duration_ms=0.4, served=None, backend=None, **error)
    elif kind == 1:
        error = {"status": 504, "error_type": "upstream_timeout", "error_message": "backend a: no first byte within 600 s"}
        captures.exchange(said, asked=asked, outcome="timeout", duration_ms=600_000.0, served=None, **error)
    else:
        captures.exchange(
            said, Choice(0, content=answer[:20]), asked=asked, outcome="client_abort", **timing(dice, asked["model"], 7)
        )
    return dice.random() < 0.5


def timing(dice: random.Random, model: str, tokens: int) -> dict[str, Any]:
    """Tokens and times of a streamed reply."""
    ttft = dice.lognormvariate(5.1, 0.5)
    gaps = [max(1, round(dice.gauss(260, 60))) for _ in range(tokens - 1)]
    return {
        "usage": (dice.randint(40, 2400), tokens),
        "ttft_ms": ttft,
        "duration_ms": ttft + sum(gaps) / 10,
        "served": model,
        "backend": dice.choice("ab"),
        "chunks": tokens,
        "deltas": [round(ttft * 10), *gaps],
    }


def picture(shade: int) -> str:
    """A small picture as a data URL."""
    width = height = 48

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = random.Random(shade).randbytes(width * height * 3)
    rows = b"".join(b"\0" + pixels[at : at + width * 3] for at in range(0, len(pixels), width * 3))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{b64encode(png).decode()}"


def lines(folder: Path, taken_s: float, exchanges: int) -> Iterator[str]:
    """What to do with it."""
    yield f"{folder / 'capture.db'}: {exchanges} exchanges in {taken_s:.0f} s"
    yield f"llmtap browse {folder / 'capture.db'}"
    yield f"llmtap export openai-sft -o train.jsonl --db {folder / 'capture.db'}"


def main(folder: Path) -> None:
    """Builds it and says where it is."""
    if (folder / "capture.db").exists():
        sys.exit(f"{folder / 'capture.db'}: there already; remove the folder to build it again")
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with Captures(folder, prices()) as captures:
        fill(captures)
        count = captures.written
    for line in lines(folder, time.perf_counter() - started, count):
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "llmtap-data" / "demo")
