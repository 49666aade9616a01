"""Brings the newest mitmproxy 12 into the environment this runs in: `make test-newest` tests with it what touches mitmproxy.

pip alone would stay with an older one wherever its index lacks a single thing that the newest asks for (a CA bundle of last
week is enough). So mitmproxy is taken without its dependencies, then each of them that does not fit, one by one; what is not
to be had is told, and what is there stays.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def promised() -> Requirement:
    """The range of mitmproxy that the package says it works with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(r for r in map(Requirement, project["dependencies"]) if r.name == "mitmproxy")


def unfit(name: str) -> list[Requirement]:
    """What the installed `name` asks for and does not have."""
    out = []
    for requirement in map(Requirement, metadata.requires(name) or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            out.append(requirement)
    return out


def pip(*arguments: str) -> bool:
    argv = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def main() -> int:
    wanted = promised()
    if not pip("--no-deps", "--upgrade", str(wanted)):
        print(f"cannot install {wanted}", file=sys.stderr)
        return 1
    importlib.invalidate_caches()
    for requirement in unfit("mitmproxy"):
        plain = f"{requirement.name}{requirement.specifier}"
        if not pip("--upgrade-strategy", "only-if-needed", plain):
            print(f"not to be had: {plain}; what is there stays")
    print(f"mitmproxy {metadata.version('mitmproxy')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
