"""What tests of imports share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap_launcher.importing.entries import Entry, records
from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.ingest import Ingester, Item
from llmtap_launcher.store.request_of import messages_at

#: an exchange as it is stored: its columns, the messages asked, the reply
type Stored = tuple[dict[str, Any], list[Any], Any]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[Entry], Stored]:
    """Stores one entry and reads it back."""

    def store(entry: Entry) -> Stored:
        from llmtap.spool.segment import Segment

        with closing(open_writer(tmp_path / "one.db")) as conn:
            conn.execute("BEGIN")
            applied = Ingester(conn).apply([Item(Segment("import", "b", 1), 0, record) for record in records(entry)])
            assert not applied.poison
            conn.execute("COMMIT")
            cursor = conn.execute("SELECT * FROM exchanges ORDER BY id DESC LIMIT 1")
            row = dict(zip([c[0] for c in cursor.description], cursor.fetchone(), strict=True))
            said = messages_at(conn, row["output_tip"])
            return row, messages_at(conn, row["input_tip"]), said[-1] if said else None

    return store


def lines(path: Path, *values: Any) -> Path:
    """A file of JSON lines; bytes are lines as they are."""
    path.write_bytes(b"".join((v if isinstance(v, bytes) else orjson.dumps(v)) + b"\n" for v in values))
    return path
