"""Other gateways, each from PyPI in an environment of its own: sglang-router, vllm-router, LiteLLM.

The routers log each request, as they do by default, unless LLMTAP_BENCH_QUIET is set. The environments are kept in
LLMTAP_BENCH_CACHE (default: a folder in the temporary directory) and made anew when it is emptied.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from targets import CannotRun, Target, free_port, last_words, running

#: set it, and the routers write no line for each request
QUIET = "LLMTAP_BENCH_QUIET"
PACKAGES = {"sglang-router": "sglang-router", "vllm-router": "vllm-router", "litellm": "litellm[proxy]"}


def cache() -> Path:
    return Path(os.environ.get("LLMTAP_BENCH_CACHE") or Path(tempfile.gettempdir()) / "llmtap-bench-peers").resolve()


def installed(name: str) -> Path:
    """The folder of commands of its environment, which is made if need be. Raises CannotRun."""
    venv = cache() / name
    mark, log = venv / ".installed", cache() / f"{name}.log"
    if mark.exists():
        return venv / "bin"
    cache().mkdir(parents=True, exist_ok=True)
    print(f"installing {PACKAGES[name]} into {venv}", file=sys.stderr, flush=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", PACKAGES[name]]
    with log.open("w") as out:
        for argv in ([sys.executable, "-m", "venv", "--clear", str(venv)], pip):
            try:
                status = subprocess.run(argv, stdout=out, stderr=subprocess.STDOUT, timeout=900).returncode
            except subprocess.TimeoutExpired:
                raise CannotRun("its installation took more than 15 minutes") from None
            if status:
                raise CannotRun(f"could not be installed{last_words(log)}")
    mark.touch()
    return venv / "bin"


def version(name: str) -> str:
    """Its version as pip knows it."""
    python = installed(name) / "python"
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def environment(name: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PATH": f"{installed(name)}{os.pathsep}{kept.get('PATH', '')}"}


def router(name: str, words: list[str], folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    """One of the two routers written in Rust (the second began as a copy of the first)."""
    port = free_port()
    argv = [str(installed(name) / name), *words, "--host", "127.0.0.1", "--port", str(port)]
    # its defaults, but: no limit that matters, as with nginx; a free metrics port
    argv += ["--worker-urls", f"http://127.0.0.1:{backend}", "--max-concurrent-requests", "100000"]
    if os.environ.get(QUIET):
        argv += ["--log-level", "error"]
    argv += ["--prometheus-port", str(free_port())]
    return running(name, argv, port, folder, env=environment(name), timeout_s=60, nice=nice)


def sglang_router(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    return router("sglang-router", ["launch"], folder, backend, nice)


def vllm_router(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    return router("vllm-router", [], folder, backend, nice)


def litellm(folder: Path, backend: int, nice: int) -> contextlib.AbstractContextManager[Target]:
    port = free_port()
    (folder / "litellm.yaml").write_text(
        f"""model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "http://127.0.0.1:{backend}/v1", api_key: sk-bench}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""
    )
    argv = [str(installed("litellm") / "litellm"), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    argv += ["--port", str(port), "--telemetry", "False"]
    return running("litellm", argv, port, folder, env=environment("litellm") | quiet, timeout_s=180, nice=nice)


PEERS = {"sglang-router": sglang_router, "vllm-router": vllm_router, "litellm": litellm}
