"""Makes docs/images/*.png: a demo database, a real Datasette on it, a headless Chromium.

    python docs/screenshots.py [FOLDER]

Chromium is found on the PATH, or named by $CHROMIUM. Pictures go to FOLDER (default: docs/images).
"""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("addons", "launcher", "tests", "docs")]

import demo  # noqa: E402

from support.browser import Browser, find  # noqa: E402
from support.captures import Captures  # noqa: E402
from support.datasette_server import serve  # noqa: E402


def smaller(path: Path) -> None:
    """The same picture in fewer bytes: Chromium packs in a hurry."""
    data = path.read_bytes()
    head, at, packed, others = data[:8], 8, b"", []
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size
        if kind == b"IDAT":
            packed += body
        else:
            others.append((kind, body))
    others.insert(-1, (b"IDAT", zlib.compress(zlib.decompress(packed), 9)))
    chunks = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in others)
    path.write_bytes(head + b"".join(chunks))


def main(folder: Path) -> None:
    """All pictures."""
    chromium = find()
    if chromium is None:
        sys.exit("no Chromium found: install it (apt-get install chromium) or set $CHROMIUM")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        with Captures(Path(scratch), demo.prices()) as captures:
            _, uid, _ = demo.fill(captures)
        pages = (
            ("requests", "/", 1280, 720),
            ("transcript", f"/-/transcript/{uid}", 1280, 1180),
            ("timeline", f"/-/transcript/{uid}", 1280, 420),
            ("search", "/capture/search?q=revenue", 1280, 560),
            ("dashboard", "/-/dashboard", 1280, 1010),
            ("conversations", "/capture/conversations?turns=2", 1280, 420),
            ("phone", f"/-/transcript/{uid}", 390, 844),
        )
        with serve(captures.db, Path(scratch) / "log") as server, Browser(chromium, Path(scratch) / "profile") as browser:
            for name, path, width, height in pages:
                browser.open(server.url + path, width, height)
                browser.screenshot(folder / f"{name}.png")
                smaller(folder / f"{name}.png")
                print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
