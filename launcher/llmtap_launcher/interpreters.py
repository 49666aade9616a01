"""Finding a CPython of a wanted version: on PATH, among pyenv's and uv's, and the one that runs us.

A name on PATH proves nothing (pyenv puts a `python3.11` there that only says it is not selected), so each candidate is asked.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: runs a command and returns its output, None when it failed
Ask = Callable[[Sequence[str]], str | None]

_QUESTION = "import sys; print('%s %d.%d %s' % (sys.implementation.name, *sys.version_info[:2], sys.executable))"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython that answered: version "3.12" and path."""

    version: str
    path: str


def ask(command: str, ask_: Ask) -> Interpreter | None:
    """What `command` is, None when it does not run or is no CPython."""
    answer = ask_([command, "-I", "-c", _QUESTION])
    match = re.fullmatch(r"cpython (\d+\.\d+) (.+)", (answer or "").strip())
    return Interpreter(match[1], match[2]) if match else None


def places(version: str, env: Mapping[str, str]) -> Iterable[str]:
    """Where an interpreter of `version` ("3.12") may be, in order."""
    on_path = shutil.which(f"python{version}", path=env.get("PATH", os.defpath))
    if on_path is not None:
        yield on_path
    home = Path(env.get("HOME") or Path.home())
    data = Path(env.get("XDG_DATA_HOME") or home / ".local" / "share")
    pyenv = Path(env.get("PYENV_ROOT") or home / ".pyenv")
    for folder, pattern in ((pyenv / "versions", f"{version}.*"), (data / "uv" / "python", f"cpython-{version}.*")):
        # the newest patch release first: 3.11.10 after 3.11.9
        for found in sorted(folder.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], reverse=True):
            yield str(found / "bin" / f"python{version}")


def find(versions: Sequence[str], env: Mapping[str, str], ask_: Ask) -> list[Interpreter]:
    """One interpreter for each of `versions` that can be found, in the order of `versions`."""
    own = Interpreter(f"{sys.version_info[0]}.{sys.version_info[1]}", getattr(sys, "_base_executable", "") or sys.executable)
    found = []
    for version in versions:
        for place in places(version, env):
            answer = ask(place, ask_) if os.access(place, os.X_OK) else None
            if answer is not None and answer.version == version:
                found.append(answer)
                break
        else:
            if own.version == version:
                found.append(own)
    return found


def chosen(wanted: str, env: Mapping[str, str], ask_: Ask) -> Interpreter | None:
    """The interpreter a user named: a version ("3.12"), a command, or a path. None when nothing answers."""
    if re.fullmatch(r"\d+\.\d+", wanted):
        return next(iter(find([wanted], env, ask_)), None)
    command = shutil.which(os.path.expanduser(wanted), path=env.get("PATH", os.defpath))
    return ask(command, ask_) if command is not None else None
