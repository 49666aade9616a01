"""Every format loads in `datasets` and passes TRL's own checks, in an environment of their own (`make test-training`)."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from llmtap_launcher.export.formats import FORMATS
from llmtap_launcher.export.options import Shape, Wanted
from llmtap_launcher.export.run import Job, export
from llmtap_launcher.store.database import connect_ro
from support.captures import Captures

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))

import demo  # noqa: E402

PYTHON = Path(os.environ.get("LLMTAP_TEST_TRAINING", ROOT / ".venv-training" / "bin" / "python"))


@pytest.mark.timeout(600)
@pytest.mark.skipif(not PYTHON.exists(), reason="no training environment: make test-training")
def test_the_libraries_take_every_file(tmp_path: Path) -> None:
    with Captures(tmp_path / "data", demo.prices()) as captures:
        demo.fill(captures, 300)
    out = tmp_path / "out"
    for name, form in FORMATS.items():
        wanted = Wanted(outcomes=(), finish_reasons=(), endpoints=()) if form.kind == "exchange" else Wanted()
        for parquet in (False, True):
            path = out / f"{name}.{'parquet' if parquet else 'jsonl'}"
            shape = Shape(tool_args="string" if parquet else form.tool_args)
            with closing(connect_ro(captures.db)) as conn:
                assert export(conn, Job(form, path, wanted, shape, parquet=parquet)).rows
    done = subprocess.run([PYTHON, ROOT / "tests/training/check.py", out], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert len(done.stdout.splitlines()) == 2 * len(FORMATS)
