"""`make` on machines that lack things: one clear line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
            assert re.fullmatch(r'[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+(; python_version (<|>=) "3.13")?', line), f"{name}: {line}"


def test_what_differs_on_python_3_12_is_pinned_for_both() -> None:
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        requirement = Requirement(line)
        assert requirement.marker is None or requirement.name not in pins or len(pins[requirement.name]) == 1
        pins.setdefault(requirement.name, []).append(str(requirement.marker or ""))
    for name, markers in pins.items():
        assert markers in ([""], ['python_version >= "3.13"', 'python_version < "3.13"']), name


def test_a_fresh_lock_keeps_the_pins_of_python_3_12(tmp_path: Path) -> None:
    """The recipe of `make lock`, with a pip that has installed other versions."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\nprintf "aaa==2\\nllmtap==0\\nxyz==3\\n"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    (tmp_path / ".installed").touch()
    (tmp_path / "requirements.lock").write_text('aaa==1\nxyz==1; python_version >= "3.13"\nxyz==0; python_version < "3.13"\n')
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".installed").touch()
    subprocess.run(["make", "lock", f"VENV={tmp_path}"], cwd=tmp_path, check=True, capture_output=True)
    expected = 'aaa==2\nxyz==3; python_version >= "3.13"\nxyz==0; python_version < "3.13"\n'
    assert (tmp_path / "requirements.lock").read_text() == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == [".installed", "Makefile", "bin", "pyproject.toml", "requirements.lock"]


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
    assert parts is not None and {"lint", "types", "unit", "integration", "faults", "test-312", "test-newest"} <= set(
        parts[1].split()
    )
