"""Makes docs/images/*.png: a demo database, a real Datasette on it, a headless Chromium.

    python docs/screenshots.py [FOLDER]

Chromium is found on the PATH, or named by $CHROMIUM. Pictures go to FOLDER (default: docs/images).
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("addons", "launcher", "tests")]

from llmtap.core.config import Price  # noqa: E402
from llmtap.core.record import Choice  # noqa: E402
from llmtap.policy.pricing import own_rates  # noqa: E402
from llmtap_launcher.store.options import Options  # noqa: E402
from support.browser import Browser, find  # noqa: E402
from support.captures import START_US, Captures, weather  # noqa: E402
from support.datasette_server import serve  # noqa: E402

TALKS = (
    ("Write a haiku about queues.", "Requests in a line,\neach token waits for its turn:\nthe river moves on."),
    ("Why is the sky blue?", "Air scatters short wavelengths of sunlight most, so blue reaches the eye from every direction."),
    ("Translate to French: good morning", "Bonjour."),
    ("Summarise this ticket in one line: the export job fails on Mondays", "The weekly export job fails every Monday."),
    (
        "SQL: top three customers by revenue",
        "SELECT customer, sum(amount) AS revenue FROM sales GROUP BY 1 ORDER BY 2 DESC LIMIT 3;",
    ),
    ("Give me three names for a grey cat", "Pebble, Misty and Slate."),
    ("Is 2027 a prime number?", "Yes, 2027 is prime."),
    (
        "Explain prefix caching to a new colleague",
        "Prompts that begin alike share the work: what the server computed for the common beginning is kept.",
    ),
)


def prices() -> Options:
    """What the demo's models cost."""
    rates = [
        Price(model="qwen3-8b", input_usd_per_million=0.1, output_usd_per_million=0.4, cached_usd_per_million=0.02),
        Price(model="llama-3.1-8b", input_usd_per_million=0.05, output_usd_per_million=0.2),
    ]
    return Options(own_rates(rates))


def demo(captures: Captures) -> list[str]:
    """Some hours of mixed traffic, and at its end a conversation with tool calls. Returns the conversation's uids."""
    dice = random.Random(7)
    for i in range(240):
        at_us = START_US - (240 - i) * 305_000_000 + dice.randrange(40_000_000)
        asked, answered = dice.choice(TALKS)
        model = dice.choice(["qwen3-8b", "qwen3-8b", "llama-3.1-8b", "sim-small"])
        who = {"model": model, "key_name": dice.choice(["production", "production", "ci", "notebook"]), "at_us": at_us}
        messages = [{"role": "user", "content": asked}]
        luck = dice.random()
        ttft, tokens = dice.lognormvariate(5.1, 0.5), dice.randint(9, 420)
        took = ttft + tokens * dice.uniform(18, 34)
        count = {
            "usage": (dice.randint(12, 2400), tokens),
            "ttft_ms": ttft,
            "duration_ms": took,
            "served": model,
            "chunks": tokens,
            "deltas": [round(ttft * 10), *(max(1, round(dice.gauss(260, 60))) for _ in range(tokens - 1))],
        }
        if luck < 0.02:
            refusal = {"status": 503, "error_type": "no_healthy_backend", "error_message": f"no healthy backend serves {model}"}
            captures.exchange(messages, asked=who, outcome="rejected", duration_ms=0.4, served=None, backend=None, **refusal)
        elif luck < 0.03:
            late = {"status": 504, "error_type": "upstream_timeout", "error_message": "backend a: no first byte within 600 s"}
            captures.exchange(messages, asked=who, outcome="timeout", duration_ms=600_000.0, served=None, **late)
        elif luck < 0.05:
            captures.exchange(messages, Choice(0, content=answered[:20]), asked=who, outcome="client_abort", **count)
        else:
            captures.exchange(messages, answered, asked=who, **count)
    captures.store()
    return weather(captures)


def main(folder: Path) -> None:
    """All pictures."""
    chromium = find()
    if chromium is None:
        sys.exit("no Chromium found: install it (apt-get install chromium) or set $CHROMIUM")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        with Captures(Path(scratch), prices()) as captures:
            _, uid, _ = demo(captures)
        pages = (
            ("requests", "/", 1280, 760),
            ("transcript", f"/-/transcript/{uid}", 1280, 1180),
            ("search", "/capture/search?q=revenue", 1280, 560),
            ("dashboard", "/-/dashboard", 1280, 1010),
            ("conversations", "/capture/conversations?turns=2", 1280, 420),
            ("phone", f"/-/transcript/{uid}", 390, 844),
        )
        with serve(captures.db, Path(scratch) / "log") as server, Browser(chromium, Path(scratch) / "profile") as browser:
            for name, path, width, height in pages:
                browser.open(server.url + path, width, height)
                browser.screenshot(folder / f"{name}.png")
                print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
