"""What other commands ask of the running writer (only it may write): one file each in `<dir>/requests`, answered beside it.

`<name>.json` is the question, replaced at once so that it is never half written; `<name>.done.json` the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

_DONE = ".done.json"

#: a question → its answer, plain data
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Requests:
    """The folder, from both sides."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "requests"

    def ask(self, name: str, what: str, question: Mapping[str, Any]) -> None:
        """Asks for `what` (prune, reprice). `name` is the asker's, unique. Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _write(self.folder / f"{name}.json", {what: question})

    def answer(self, name: str) -> dict[str, Any] | None:
        """The answer, which is taken away with the question; None while there is none."""
        path = self.folder / f"{name}{_DONE}"
        try:
            found = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        path.unlink(missing_ok=True)
        return found if isinstance(found, dict) else None

    def withdraw(self, name: str) -> bool:
        """Takes a question back; False when somebody has taken it already."""
        try:
            (self.folder / f"{name}.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def serve(self, answers: Mapping[str, Answer]) -> int:
        """Answers what was asked, each kind by its function; returns how much. What is no question (the function raises
        TypeError, ValueError or KeyError) is thrown away."""
        try:
            names = [name for name in os.listdir(self.folder) if name.endswith(".json") and not name.endswith(_DONE)]
        except OSError:
            return 0
        for name in names:
            path = self.folder / name
            try:
                ((what, question),) = orjson.loads(path.read_bytes()).items()
                answer = answers[what](question)
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                with suppress(OSError):
                    path.unlink()
                continue
            with suppress(OSError):
                _write(self.folder / f"{name.removesuffix('.json')}{_DONE}", answer)
                path.unlink()
        return len(names)


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(orjson.dumps(value))
    os.replace(temporary, path)
