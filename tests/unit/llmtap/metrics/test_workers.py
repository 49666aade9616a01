"""Several processes, one set of numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry

from llmtap.metrics import families as f
from llmtap.metrics.workers import Share


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[CollectorRegistry]:
    """A registry that tells all of the folder, with nothing counted in this process."""
    registry = CollectorRegistry()
    share = Share(f.Families(), tmp_path, "scraped")
    registry.register(share)
    yield registry
    share.stop()


def test_a_fold_that_was_killed_halfway_counts_nothing_twice(tmp_path: Path, scraped: CollectorRegistry) -> None:
    families = f.Families()
    families.add(f.Counter("c", "C.")).inc(5)
    gone = Share(families, tmp_path, "gone")
    gone.stop()
    data = (tmp_path / "gone.json").read_bytes()
    assert scraped.get_sample_value("c_total") == 5
    (tmp_path / "gone.json").write_bytes(data)  # the sum was written, its file not yet gone
    assert scraped.get_sample_value("c_total") == 5
    assert scraped.get_sample_value("c_total") == 5
    assert not (tmp_path / "gone.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"families": [{"name": "x"}]}', b'{"families": 3}', b"\xff"])
def test_files_that_cannot_be_read_are_left_out(tmp_path: Path, scraped: CollectorRegistry, content: bytes) -> None:
    (tmp_path / "torn.json").write_bytes(content)
    (tmp_path / "ended.json").write_bytes(content)
    families = f.Families()
    families.add(f.Counter("c", "C.")).inc(5)
    Share(families, tmp_path, "fine").stop()
    assert scraped.get_sample_value("c_total") == 5


def test_a_change_of_buckets_keeps_what_is_within_a_bound(tmp_path: Path) -> None:
    old, new = f.Families(), f.Families()
    old.add(f.Histogram("h", "H.", (1.0, 2.0, 5.0))).observe(1.5)
    old.add(f.Histogram("far", "F.", (1.0, 100.0))).observe(50)
    new.add(f.Histogram("h", "H.", (1.0, 5.0)))
    new.add(f.Histogram("far", "F.", (1.0,)))
    new.absorb(orjson.loads(orjson.dumps(old.dump())))
    told = {family.name: [s.value for s in family.samples if s.name.endswith("_bucket")] for family in new.collect()}
    assert told == {"h": [0, 1, 1], "far": [0, 1]}


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    share = Share(f.Families(), tmp_path, "a")
    with pytest.raises(OSError):
        Share(f.Families(), tmp_path, "a")
    share.stop()
    assert os.listdir(tmp_path)


def test_facts_of_those_that_live(tmp_path: Path) -> None:
    one, two = (Share(f.Families(), tmp_path, name) for name in ("one", "two"))
    two.facts = lambda: {"pid": 2}
    assert one.others() == []
    two._write(two._dump())
    assert (one.others(), two.others()) == ([{"pid": 2}], [])
    two.stop()
    assert one.others() == []
    one.stop()
