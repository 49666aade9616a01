"""Filling a database from its own rows gives what storing them gave."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from llmtap_launcher.store.backfill import backfill
from llmtap_launcher.store.checksum import checksums, rows
from llmtap_launcher.store.database import open_writer
from support.captures import Captures, weather


def test_it_comes_to_the_same(tmp_path: Path) -> None:
    with Captures(tmp_path) as captures:
        weather(captures)
        captures.exchange([{"role": "user", "content": "hello"}], " hi \n", usage=(1, 2), deltas=[100, 20, 30])
        captures.exchange(
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}],
            "ok",
        )
        captures.begin([{"role": "user", "content": "never ends"}])
        captures.exchange([], None, asked={"endpoint": "embeddings", "path": "/v1/embeddings"}, usage=(3, 0))
        captures.store()
    with closing(open_writer(tmp_path / "capture.db")) as conn:
        before = checksums(conn)
        assert len(rows(conn, "conversations")) == 3
        conn.executescript(
            "DELETE FROM conversations; DELETE FROM usage_daily; DELETE FROM usage_hourly; DELETE FROM latency_hist; "
            "UPDATE exchanges SET conversation_id = NULL, loose_tip = NULL, loose_input = NULL"
        )
        assert checksums(conn) != before
        conn.execute("BEGIN")
        backfill(conn)
        assert checksums(conn) == before
