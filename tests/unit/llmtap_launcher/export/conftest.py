"""A demo database for the tests of exports, and how they export."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap_launcher.export.formats import FORMATS
from llmtap_launcher.export.options import Drawn, Shape, Wanted
from llmtap_launcher.export.redact import Redactor
from llmtap_launcher.export.run import Job, Report, export
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures

sys.path.append(str(Path(__file__).parents[4] / "docs"))

import demo

#: rows and what is said of them
type Exported = tuple[list[dict[str, Any]], Report]
type Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def demo_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with Captures(folder, demo.prices()) as captures:
        demo.fill(captures, 150)
    return captures.db


@pytest.fixture
def captures(tmp_path: Path) -> Iterator[Captures]:
    with Captures(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def run(tmp_path: Path) -> Export:
    """Exports a database: format, then anything of Wanted, Shape, Drawn and Job by name."""

    def go(db: Path, name: str, *, redactor: Redactor | None = None, plain: bool = False, **given: Any) -> Exported:
        form = FORMATS[name]
        default: dict[str, Any] = {"outcomes": (), "finish_reasons": (), "endpoints": ()} if form.kind == "exchange" else {}
        wanted = Wanted(**default | {k: given.pop(k) for k in list(given) if k in Wanted.__slots__})
        shape = {"tool_args": form.tool_args, **{k: given.pop(k) for k in list(given) if k in Shape.__slots__}}
        drawn = Drawn(**{k: given.pop(k) for k in list(given) if k in Drawn.__slots__})
        out = tmp_path / "out.jsonl"
        out.unlink(missing_ok=True)
        with closing(connect_ro(db)) as conn:
            report = export(conn, Job(form, out, wanted, Shape(**shape), drawn, **given), redactor)
        assert out.exists() == bool(report.rows)
        return [orjson.loads(line) for line in out.read_bytes().splitlines()] if report.rows else [], report

    return go
