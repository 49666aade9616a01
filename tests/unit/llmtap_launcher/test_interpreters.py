import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llmtap_launcher.interpreters import Interpreter, ask, chosen, find, places

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


def really(argv: Sequence[str]) -> str | None:
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_asks_a_real_one() -> None:
    found = ask(sys.executable, really)
    assert found is not None
    assert found.version == OWN
    assert ask("/bin/false", really) is None
    assert ask("x", lambda argv: "pypy 3.11 /x") is None
    assert ask("x", lambda argv: None) is None


def test_looks_on_path_then_pyenv_then_uv_newest_patch_first(tmp_path: Path) -> None:
    on_path = executable(tmp_path / "bin" / "python3.11")
    nine = executable(tmp_path / "pyenv" / "versions" / "3.11.9" / "bin" / "python3.11")
    ten = executable(tmp_path / "pyenv" / "versions" / "3.11.10" / "bin" / "python3.11")
    uv = executable(tmp_path / "data" / "uv" / "python" / "cpython-3.11.4-linux-x86_64-gnu" / "bin" / "python3.11")
    env = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "XDG_DATA_HOME": str(tmp_path / "data")}
    assert list(places("3.11", env)) == [on_path, ten, nine, uv]
    assert list(places("3.1", env)) == []


def test_a_name_on_path_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    shim = executable(tmp_path / "bin" / "python3.11")
    real = executable(tmp_path / "pyenv" / "versions" / "3.11.7" / "bin" / "python3.11")
    env = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)}

    def answers(argv: Sequence[str]) -> str | None:
        return None if argv[0] == shim else f"cpython 3.11 {real}\n"

    assert find(["3.11"], env, answers) == [Interpreter("3.11", real)]
    assert chosen("3.11", env, answers) == Interpreter("3.11", real)


def test_the_one_that_runs_us_counts_as_well(tmp_path: Path) -> None:
    env = {"PATH": "", "HOME": str(tmp_path)}
    found = find(["2.0", OWN], env, lambda argv: None)
    assert [interpreter.version for interpreter in found] == [OWN]
    assert Path(found[0].path).exists()
    assert find(["2.0"], env, lambda argv: None) == []


def test_a_wrong_version_behind_a_name_is_not_taken(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "python3.1")
    env = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    assert find(["3.1"], env, lambda argv: "cpython 3.2 /x") == []


def test_chosen_by_path_or_command(tmp_path: Path) -> None:
    command = executable(tmp_path / "my-python")
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    for name in (command, "my-python"):
        assert chosen(name, env, lambda argv: f"cpython 3.12 {argv[0]}") == Interpreter("3.12", command)
    assert chosen("no-such-python", env, lambda argv: "cpython 3.12 /x") is None
