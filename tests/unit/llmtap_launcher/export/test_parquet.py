"""Parquet has the same rows as the lines."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.export.formats import FORMATS
from llmtap_launcher.export.options import Shape, Wanted
from llmtap_launcher.export.parquet import NeedsParts, Table
from llmtap_launcher.export.run import Job, export
from llmtap_launcher.store.database import connect_ro

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_same_rows(name: str, demo_db: Path, run: Any, tmp_path: Path) -> None:
    form = FORMATS[name]
    plain = form.kind == "exchange"
    wanted = Wanted(outcomes=(), finish_reasons=(), endpoints=()) if plain else Wanted()
    lines, _ = run(demo_db, name, tool_args="string")
    out = tmp_path / "rows.parquet"
    with closing(connect_ro(demo_db)) as conn:
        report = export(conn, Job(form, out, wanted, Shape(), parquet=True))
    table = parquet.read_table(out).to_pylist()
    assert report.rows == len(table) == len(lines)
    assert [_bare(_read(row)) for row in table] == [_bare(row) for row in lines]
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["rows.parquet"]


_JSON = ("tools", "body", "tags", "metadata", "params", "response_meta", "messages", "choices", "ratings")


def _read(row: dict[str, Any]) -> dict[str, Any]:
    """Columns of JSON as what they say."""
    out = {key: orjson.loads(value) if key in _JSON and type(value) is str else value for key, value in row.items()}
    if "input" in out and type(out["input"]) is dict and type(out["input"].get("tools")) is str:
        out["input"]["tools"] = orjson.loads(out["input"]["tools"])
    return out


def _bare(value: Any) -> Any:
    """Without what is null or an empty list: a column is there for all or for none. Texts alone in a list are texts."""
    if type(value) is dict:
        return {key: _bare(item) for key, item in value.items() if item not in (None, [])}
    if type(value) is list:
        if len(value) == 1 and type(value[0]) is dict and value[0].get("type") == "text":
            return _bare(value[0]["text"])
        return [_bare(item) for item in value]
    if type(value) is str and value[:1] in "[{":
        try:
            return _bare(orjson.loads(value))
        except orjson.JSONDecodeError:
            return value
    return value


def test_contents_that_are_lists_need_another_schema(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
    table = Table(tmp_path / "a.parquet", "trl-sft")
    with pytest.raises(NeedsParts):
        table.write(row)
    table.abandon()
    assert list(tmp_path.iterdir()) == []
    parts = Table(tmp_path / "a.parquet", "trl-sft", parts=True)
    parts.write(row)
    assert parts.finish().rows == 1


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(LlmtapError, match="pip install"):
        Table(tmp_path / "a.parquet", "raw")
