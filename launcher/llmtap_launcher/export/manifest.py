"""What was exported, into the table `exports`: here when no writer is at work, else by the writer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmtap.core.errors import LlmtapError
from llmtap_launcher.store import errand
from llmtap_launcher.store.exports import Export
from llmtap_launcher.store.rows import iso

#: the file is there; a busy writer is no reason to wait for long
_PATIENCE_S = 10.0


def keep(directory: Path, database: Path, manifest: Mapping[str, Any]) -> str | None:
    """Stores it in the database of a capture folder; returns why it could not be, in words."""
    export = Export(
        iso(time.time_ns() // 1000),
        manifest["format"],
        manifest["selection"],
        sum(file["rows"] for file in manifest["files"]),
        manifest["files"][0]["sha256"],
        dict(manifest),
    )
    row = asdict(export)
    try:
        errand.run(directory, database, "export", row, lambda writer: writer.note(row), _PATIENCE_S)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    except LlmtapError as error:
        return str(error)
    return None
