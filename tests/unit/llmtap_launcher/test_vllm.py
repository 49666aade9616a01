import json
import sys
from pathlib import Path

import pytest

from llmtap.core.errors import ConfigError
from llmtap_launcher.engine_env import Environment, write
from llmtap_launcher.vllm import flags, sim_argv, sim_flags, vllm_argv, vllm_command, vllm_env


def executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_every_kind_of_value() -> None:
    assert flags({"dtype": "auto", "gpu-memory-utilization": 0.7, "max_num_seqs": 8}) == [
        "--dtype", "auto", "--gpu-memory-utilization", "0.7", "--max-num-seqs", "8",
    ]  # fmt: skip
    assert flags({"enforce-eager": True, "enable-prefix-caching": False, "quantization": None}) == [
        "--enforce-eager",
        "--no-enable-prefix-caching",
    ]
    assert flags({"served-model-name": ["a", "b"]}) == ["--served-model-name", "a", "b"]
    assert flags({"compilation-config": {"level": 3, "x": [True]}})[1] == json.dumps({"level": 3, "x": [True]})
    assert flags({"chat-template": "-odd"}) == ["--chat-template=-odd"]
    assert flags({}) == []


def test_the_simulated_engine_repeats_lists_and_has_no_negative_switches() -> None:
    assert sim_flags({"fail": ["stall=3", "http_500:0.1"], "verbose": True, "quiet": False, "x": None, "ttft_ms": 5}) == [
        "--fail", "stall=3", "--fail", "http_500:0.1", "--verbose", "--ttft-ms", "5",
    ]  # fmt: skip
    assert sim_flags({"seed": -1}) == ["--seed=-1"]


def test_command_lines() -> None:
    assert vllm_argv(["/v/bin/vllm"], "org/model", "127.0.0.1", 9000, {"dtype": "auto"}) == [
        "/v/bin/vllm", "serve", "org/model", "--host", "127.0.0.1", "--port", "9000", "--dtype", "auto",
    ]  # fmt: skip
    argv = sim_argv("sim-small", "127.0.0.1", 9001, {"ttft-ms": 5})
    assert argv[0] == sys.executable
    assert argv[2:] == ["-m", "llmtap_launcher", "sim", "--port", "9001", "--model", "sim-small", "--ttft-ms", "5"]
    assert sim_argv("m", "::1", 1, {})[-2:] == ["--host", "::1"]


def test_where_vllm_comes_from(tmp_path: Path) -> None:
    on_path = executable(tmp_path / "bin" / "vllm")
    in_venv = executable(tmp_path / "venv" / "bin" / "vllm")
    env = {"PATH": str(tmp_path / "bin"), "XDG_DATA_HOME": str(tmp_path / "data")}
    assert vllm_command(None, None, env) == [on_path]
    made = executable(tmp_path / "data" / "llmtap" / "engines" / "vllm-1" / "bin" / "vllm")
    write(Environment("vllm", "1", str(Path(made).parents[1]), 1.0))
    assert vllm_command(None, None, env) == [made]
    assert vllm_command(None, tmp_path / "venv", env) == [in_venv]
    assert vllm_command((in_venv, "--flag", "a b"), None, env) == [in_venv, "--flag", "a b"]
    assert vllm_command(["vllm"], tmp_path / "venv", env) == ["vllm"]


def test_when_there_is_none_it_says_how_to_get_one(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    with pytest.raises(ConfigError, match="vllm not found; install it with `llmtap engine install vllm`"):
        vllm_command(None, None, env)
    with pytest.raises(ConfigError, match=r"launch\.venv: there is no .*llmtap engine install vllm"):
        vllm_command(None, tmp_path / "none", env)
    with pytest.raises(ConfigError, match=r"launch\.command: my-vllm not found; give its full path"):
        vllm_command(["my-vllm", "--x"], None, env)


def test_environment() -> None:
    base = {"PATH": "/usr/bin", "A": "1"}
    assert vllm_env(base, {"A": "2", "CUDA_VISIBLE_DEVICES": "0"}, ["/v/bin/vllm"], "key") == {
        "PATH": "/v/bin:/usr/bin",
        "A": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "VLLM_API_KEY": "key",
    }
    assert vllm_env(base, {}, ["vllm"], None) == base
    assert vllm_env(base, {"VLLM_API_KEY": "mine"}, ["vllm"], "key")["VLLM_API_KEY"] == "mine"
