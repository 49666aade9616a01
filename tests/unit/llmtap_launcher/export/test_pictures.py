"""Pictures in place or as files, whichever way the client wrote them."""

from __future__ import annotations

import base64
from contextlib import closing
from pathlib import Path
from typing import Any

import demo

from llmtap_launcher.export.pictures import Pictures
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures

PNG = demo.picture(3)
RAW = base64.b64decode(PNG.partition(",")[2])


def test_urls_stay_and_bare_base64_becomes_one(captures: Captures, tmp_path: Path) -> None:
    with closing(connect_ro(captures.db)) as conn:
        here, files = Pictures(conn), Pictures(conn, tmp_path / "pics", "pics")
        assert (
            here.url("https://example.org/a.png", 1) == files.url("https://example.org/a.png", 1) == "https://example.org/a.png"
        )
        assert here.url(PNG, 1) == PNG
        assert here.url(PNG.partition(",")[2], 1) == PNG  # its first bytes tell what it is
        assert here.url("/9j/4AAQ", 1, "image/jpeg") == "data:image/jpeg;base64,/9j/4AAQ"
        name = files.url(PNG, 1)
        assert name is not None and name.startswith("pics/") and name.endswith(".png")
        assert (tmp_path / name).read_bytes() == RAW
        assert (files.url(PNG, 2), files.count, here.count) == (name, 1, 0)
        assert here.url("no picture!", 1) is None


def test_attachments_of_this_message_only(captures: Captures, run: Any, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PNG}}]
    captures.exchange([{"role": "user", "content": parts}], "a picture")
    captures.store()
    (row,), _ = run(captures.db, "openai-sft")
    assert row["messages"][0]["content"] == parts
    (row,), report = run(captures.db, "openai-sft", images="files")
    url = row["messages"][0]["content"][1]["image_url"]["url"]
    assert (Path(url).read_bytes(), report.pictures) == (RAW, 1)
    (row,), _ = run(captures.db, "openai-sft", images="drop")
    assert row["messages"][0]["content"] == "look"
    rows, report = run(captures.db, "openai-sft", images="skip")
    assert (rows, report.left_out) == ([], {"pictures": 1})
    with closing(connect_ro(captures.db)) as conn:
        hashed = conn.execute("SELECT hex(hash) FROM attachments").fetchone()[0].lower()
        assert Pictures(conn).url(f"attachment:{hashed}:data:image/png;base64,", 999) is None
