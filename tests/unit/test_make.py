"""`make` on machines that lack things: one clear line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_a_python_that_is_too_old_is_said_in_one_line(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "grep", "expand", "sed", "make", "env"):
        (tools / name).symlink_to(shutil.which(name) or "")
    for name in ("python3", "python"):
        old = tools / name
        old.write_text("#!/bin/bash\nexit 1  # what `sys.exit(version < (3, 12))` gives on an old Python\n")
        old.chmod(0o755)
    env = {"PATH": str(tools), "HOME": str(tmp_path)}
    done = subprocess.run(["make", "venv", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1 and "needs Python 3.12 or newer" in lines[0]
    assert not (tmp_path / "venv").exists()


def test_the_locks_hold_names_and_versions_only() -> None:
    for name in ("requirements.lock", "requirements-lowest.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line), f"{name}: {line}"


def test_the_lowest_versions_are_those_the_package_promises() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = set()
    for requirement in project["dependencies"]:
        name, lowest = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement).groups()  # type: ignore[union-attr]
        promised.add((name, lowest))
    tested = {tuple(line.split("==")) for line in (ROOT / "requirements-lowest.txt").read_text().split()}
    shortened = {(name, re.sub(r"(\.0)+$", "", version)) for name, version in tested}
    assert {(name, re.sub(r"(\.0)+$", "", version)) for name, version in promised} == shortened


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and os.access(ROOT / ".ci" / "run", os.X_OK)
    makefile = (ROOT / "Makefile").read_text()
    parts = re.search(r"^test: (.*?)(##|$)", makefile, re.MULTILINE)
    assert parts is not None and {"lint", "types", "unit", "integration", "faults", "test-312"} <= set(parts[1].split())
