"""Making an environment for vLLM: which commands are run, in which order, and what each failure means to the user.

The commands go through a `Runner`, so that all of it is tested without installing anything. uv does the work, because only uv can
leave a dependency out (`--override`); where it is not on PATH, pip fetches it into a throwaway environment. Where packages come
from is pip's own configuration (`pip_config.py`); no address is written here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmtap.core.errors import LlmtapError

from . import pip_config
from .engine_env import MARKER, Engine, Environment, engines_dir, read, write
from .interpreters import Interpreter, chosen, find


class Runner(Protocol):
    """Runs a command. `shown`: its output goes to the terminal (and is not returned)."""

    def __call__(self, argv: Sequence[str], env: Mapping[str, str], *, shown: bool = False) -> tuple[int, str]:
        """Exit status and output (stdout, then stderr); 127 when there is no such command."""


def run(argv: Sequence[str], env: Mapping[str, str], *, shown: bool = False) -> tuple[int, str]:
    """The real Runner."""
    try:
        done = subprocess.run(
            argv, env=dict(env), capture_output=not shown, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        return 127, str(error)
    return done.returncode, (done.stdout or "") + (done.stderr or "")


@dataclass(frozen=True, slots=True)
class Order:
    """What a user asked for. `venv` None: the default place; `python` None: whatever fits."""

    engine: Engine
    version: str
    python: str | None = None
    venv: Path | None = None


class Installer:
    """Carries out one Order. `say` gets a line a step."""

    def __init__(
        self,
        order: Order,
        *,
        runner: Runner = run,
        say: Callable[[str], None] = print,
        env: Mapping[str, str] = os.environ,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self.order, self._run, self._say, self._free_bytes = order, runner, say, free_bytes
        # a PYTHONPATH or an active environment of the caller's must not leak into the new one
        self._env = {k: v for k, v in env.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")}
        self.path = (order.venv or engines_dir(env) / f"{order.engine.name}-{order.version}").expanduser().absolute()

    def install(self) -> Environment:
        """Make the environment unless it is there already. Raises LlmtapError, one line that says what to do."""
        engine, version = self.order.engine, self.order.version
        there = read(self.path)
        if there is not None and (there.engine, there.version) == (engine.name, version):
            self._say(f"{engine.name} {version} is installed already in {self.path}")
            return there
        self._clear()
        self._check_space()
        with tempfile.TemporaryDirectory(prefix="llmtap-engine-") as scratch:
            candidates = self._interpreters()
            uv = self._uv(Path(scratch), candidates[0])
            env = {**self._env, **pip_config.uv_variables(self._pip_config(candidates[0]), self._env)}
            overrides = Path(scratch) / "overrides.txt"
            overrides.write_text("".join(f"{line}\n" for line in engine.overrides), "utf-8")
            python = self._resolve(uv, candidates, overrides, env)
            self._say(
                f"installing {engine.name} {version} for Python {python.version}: some {engine.disk_gb} GB, this takes minutes"
            )
            status, _ = self._run([uv, "pip", "install", *self._what(overrides), *self._into()], env, shown=True)
            if status:
                raise LlmtapError(f"installing {engine.name} {version} failed (see above); the same command starts over")
        if engine.distribution != "vllm":
            self._alias(f"{version}+cpu")
        self._say("checking that it runs")
        status, output = self._run([str(self.path / "bin" / "vllm"), "--version"], self._env)
        if status:
            raise LlmtapError(f"{self.path}/bin/vllm does not run: {_last_line(output)}")
        made = Environment(engine.name, version, str(self.path), time.time())
        write(made)
        return made

    def _clear(self) -> None:
        """Remove what an interrupted or an older install left; refuse to remove what is not an environment."""
        if not self.path.exists():
            return
        ours = self.path.is_dir() and ((self.path / "pyvenv.cfg").is_file() or (self.path / MARKER).is_file())
        if ours:
            self._say(f"{self.path} is half made, or holds something else than asked for: starting over")
            shutil.rmtree(self.path)
        elif not self.path.is_dir() or any(self.path.iterdir()):
            raise LlmtapError(f"{self.path} exists and is not a Python environment; choose another folder with --venv")

    def _check_space(self) -> None:
        folder = self.path.parent
        while not folder.exists():
            folder = folder.parent
        name, wanted = self.order.engine.name, self.order.engine.disk_gb
        free_gb = self._free_bytes(folder) / 1e9
        if free_gb < wanted:
            raise LlmtapError(
                f"{name} needs about {wanted} GB, {folder} has {free_gb:.1f} GB free; choose another disk with --venv"
            )

    def _output(self, argv: Sequence[str]) -> str | None:
        status, output = self._run(argv, self._env)
        return output if status == 0 else None

    def _interpreters(self) -> list[Interpreter]:
        engine, wanted = self.order.engine, self.order.python
        supported = _listing(engine.pythons)
        if wanted is not None:
            named = chosen(wanted, self._env, self._output)
            if named is None:
                raise LlmtapError(f"--python {wanted}: no CPython answers there")
            if named.version not in engine.pythons:
                raise LlmtapError(f"--python {wanted} is Python {named.version}; {engine.name} has packages for {supported} only")
            return [named]
        found = find(engine.pythons, self._env, self._output)
        if not found:
            raise LlmtapError(
                f"{engine.name} needs CPython {supported} and none was found; install one, or name it: --python PATH"
            )
        return found

    def _uv(self, scratch: Path, python: Interpreter) -> str:
        known = shutil.which("uv", path=self._env.get("PATH", os.defpath))
        if known is not None and self._run([known, "--version"], self._env)[0] == 0:
            return known
        self._say("fetching uv, which does the installing, into a throwaway environment")
        why = ""
        for executable in (sys.executable, python.path):  # a distribution's own Python may lack the venv module
            status, output = self._run([executable, "-m", "venv", "--clear", str(scratch / "uv")], self._env)
            if status == 0:
                fetch = [str(scratch / "uv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"]
                status, output = self._run(fetch, self._env)
            if status == 0:
                return str(scratch / "uv" / "bin" / "uv")
            why = why or _last_line(output)
        raise LlmtapError(f"uv is not on PATH and could not be fetched with pip: {why}")

    def _pip_config(self, python: Interpreter) -> dict[str, str]:
        for executable in (sys.executable, python.path):
            status, output = self._run([executable, "-m", "pip", "config", "list"], self._env)
            if status == 0:
                return pip_config.parse(output)
        return {}

    def _what(self, overrides: Path) -> list[str]:
        engine = self.order.engine
        override = ["--override", str(overrides)] if engine.overrides else []
        return [*override, f"{engine.distribution}=={self.order.version}"]

    def _into(self) -> list[str]:
        return ["--python", str(self.path / "bin" / "python")]

    def _resolve(self, uv: str, candidates: Sequence[Interpreter], overrides: Path, env: Mapping[str, str]) -> Interpreter:
        """Make the environment for the first interpreter that every needed package has a build for."""
        why = ""
        for python in candidates:
            status, output = self._run([uv, "venv", "--quiet", "--clear", "--python", python.path, str(self.path)], env)
            if status:
                raise LlmtapError(f"cannot make an environment in {self.path}: {_last_line(output)}")
            self._say(f"resolving for Python {python.version} ({python.path})")
            status, output = self._run([uv, "pip", "install", "--dry-run", *self._what(overrides), *self._into()], env)
            if status == 0:
                return python
            why = why or " ".join(output.split())
        tried = _listing([python.version for python in candidates])
        shutil.rmtree(self.path, ignore_errors=True)
        raise LlmtapError(
            f"no set of packages for {self.order.engine.name} {self.order.version} on Python {tried}: {why[:600]} "
            "(torch's CPU build may need an index or a link folder in pip's configuration: PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)"
        )

    def _alias(self, version: str) -> None:
        """Have importlib.metadata know the distribution as "vllm": its command line asks for that name, whatever the build."""
        code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        purelib = (self._output([str(self.path / "bin" / "python"), "-I", "-c", code]) or "").strip()
        if not purelib:
            raise LlmtapError(f"the environment in {self.path} does not work; the same command starts over")
        folder = Path(purelib) / f"vllm-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", "utf-8")


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _listing(versions: Sequence[str]) -> str:
    return ", ".join(sorted(versions, key=lambda version: [int(part) for part in version.split(".")]))
