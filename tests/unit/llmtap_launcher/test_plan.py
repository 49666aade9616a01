import asyncio
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from llmtap.core import config_load
from llmtap.core.config import Config, Launch
from llmtap.core.errors import ConfigError
from llmtap_launcher.guard import RUN_VARIABLE
from llmtap_launcher.plan import Setup, decide, make_plan, part, served_name, writer_ready
from llmtap_launcher.process import Started
from llmtap_launcher.runtime import RunFolder
from llmtap_launcher.store.status import StatusFile, WriterStatus
from llmtap_launcher.supervisor import Plan

VLLM = {"name": "big", "api_key": "sk-backend", "launch": {"model": "org/m", "args": {"dtype": "auto"}, "env": {"HF_TOKEN": "t"}}}


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def config(tmp_path: Path, **sections: object) -> Config:
    return config_load.load(None, {}, {"capture": {"dir": tmp_path / "data"}, **sections})


def plan_of(setup: Setup, env: dict[str, str]) -> Plan:
    with RunFolder(setup.config.capture.dir) as folder:
        return make_plan(setup, folder, "run-1", env)


def test_open_ports_are_decided_and_paths_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = {"server": {"port": 0, "web": True}, "datasette": {"port": 0}, "store": {"path": "x.db"}}
    setup = decide(config_load.load(None, {}, overrides).with_sims())
    decided = setup.config
    urls = [backend.url for backend in decided.backends]
    ports = {decided.server.port, decided.datasette.port, setup.web_port, *(int(str(url).rpartition(":")[2]) for url in urls)}
    assert len(ports) == 5
    assert 0 not in ports
    assert decided.capture.dir == tmp_path / "llmtap-data"
    assert decided.db_path == tmp_path / "x.db"
    assert setup.url == f"http://127.0.0.1:{decided.server.port}"


def test_what_is_given_stays(tmp_path: Path) -> None:
    setup = decide(config(tmp_path, backends=[{"name": "a", "url": "http://127.0.0.1:8081"}]))
    assert setup.config.backends[0].url == "http://127.0.0.1:8081"
    assert (setup.config.server.port, setup.config.datasette.port, setup.web_port) == (8000, 8001, None)


def test_mitmwebs_port_gives_way_to_a_backend(tmp_path: Path) -> None:
    setup = decide(config(tmp_path, server={"web": True}, backends=[{"name": "a", "url": "http://127.0.0.1:8081"}]))
    assert setup.web_port not in (None, 8081)


def test_a_whole_plan(tmp_path: Path) -> None:
    vllm = executable(tmp_path / "venv" / "bin" / "vllm")
    sim = {"name": "s", "launch": {"engine": "sim", "model": "sim-small", "args": {"fail": ["a", "b"]}}}
    backend = {**VLLM, "launch": {**VLLM["launch"], "venv": str(tmp_path / "venv")}}  # type: ignore[dict-item]
    other = {"name": "ext", "url": "http://127.0.0.1:1"}
    setup = decide(config(tmp_path, backends=[backend, sim, other], server={"drain_timeout_s": 7}))
    plan = plan_of(setup, {"PATH": "/usr/bin", "LLMTAP_SERVER__PORT": "1"})
    big, small = plan.backends
    port = str(setup.config.backends[0].url).rpartition(":")[2]
    assert list(big.argv) == [str(vllm), "serve", "org/m", "--host", "127.0.0.1", "--port", port, "--dtype", "auto"]
    assert big.env is not None and small.env is not None and plan.gateways[0].env is not None
    assert (big.env["HF_TOKEN"], big.env["VLLM_API_KEY"]) == ("t", "sk-backend")
    assert big.startup_timeout_s == 900
    assert plan.slow == {"big"}
    assert list(small.argv)[-4:] == ["--fail", "a", "--fail", "b"]
    assert "HF_TOKEN" not in plan.gateways[0].env
    assert "LLMTAP_SERVER__PORT" not in plan.gateways[0].env
    assert plan.gateways[0].grace_s == 12
    assert plan.writer is not None and plan.datasette is not None
    assert plan.writer.argv[-2:] == ["--dir", str(tmp_path / "data")]
    assert plan.writer.stdin_pipe
    for spec in (big, small, plan.gateways[0], plan.writer, plan.datasette):
        assert spec.env is not None
        assert spec.env[RUN_VARIABLE] == "run-1"
    assert [row["name"] for row in plan.facts["backends"]] == ["big", "s", "ext"]
    assert plan.facts["urls"]["openai"] == "http://127.0.0.1:8000/v1"


def test_workers_share_the_port_the_metrics_and_the_limits(tmp_path: Path) -> None:
    backends = [{"name": "a", "url": "http://127.0.0.1:1", "max_concurrency": 5}, {"name": "b", "url": "http://127.0.0.1:2"}]
    queue = {"max_concurrency": 1, "max_waiting": 30}
    plan = plan_of(decide(config(tmp_path, backends=backends, server={"workers": 3}, queue=queue)), {"PATH": "/usr/bin"})
    assert [spec.name for spec in plan.gateways] == ["gateway-1", "gateway-2", "gateway-3"]
    (shared,) = {spec.argv[spec.argv.index("--shared-metrics") + 1] for spec in plan.gateways}
    assert Path(shared) == tmp_path / "data" / "run" / "metrics"
    for spec in plan.gateways:
        assert spec.listens is None and spec.policy.startup_limit == 1
    loaded = config_load.load(tmp_path / "data" / "run" / "gateway.yaml", {}, {})
    assert loaded.server.workers == 3
    assert [backend.max_concurrency for backend in loaded.backends] == [2, part(256, 3)]
    assert (loaded.queue.max_concurrency, loaded.queue.max_waiting) == (1, 10)


def test_a_part_of_a_limit() -> None:
    assert [part(limit, 4) for limit in (None, 1, 4, 5, 256)] == [None, 1, 1, 2, 64]


def test_the_gateways_file_says_the_same_and_no_more(tmp_path: Path) -> None:
    backend = {**VLLM, "launch": {**VLLM["launch"], "command": sys.executable}}  # type: ignore[dict-item]
    setup = decide(config(tmp_path, backends=[backend], server={"max_body_mb": 3}, metrics={"enabled": False}))
    plan = plan_of(setup, {"PATH": "/usr/bin"})
    path = tmp_path / "data" / "run" / "gateway.yaml"
    assert str(path) in plan.gateways[0].argv
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "HF_TOKEN" not in path.read_text()
    loaded = config_load.load(path, {}, {})
    expected = setup.config.model_copy(update={"backends": (setup.config.backends[0].model_copy(update={"launch": None}),)})
    assert loaded == expected
    assert loaded.backends[0].api_key is not None
    assert loaded.backends[0].api_key.get_secret_value() == "sk-backend"


def test_no_vllm_is_an_error_or_with_others_a_backend_that_fails(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match="vllm not found; install it with `llmtap engine install vllm`"):
        plan_of(decide(config(tmp_path, backends=[VLLM])), env)
    plan = plan_of(decide(config(tmp_path, backends=[VLLM, {"name": "x", "url": "http://127.0.0.1:1"}])), env)
    assert "vllm not found" in (plan.backends[0].broken or "")


def test_parts_that_are_off(tmp_path: Path) -> None:
    backends = [{"name": "x", "url": "http://127.0.0.1:1"}]
    plan = plan_of(decide(config(tmp_path, backends=backends, datasette={"enabled": False})), {})
    assert plan.datasette is None
    assert plan.facts["urls"]["datasette"] is None
    capture = {"dir": tmp_path / "data", "enabled": False}
    plan = plan_of(decide(config(tmp_path, backends=backends, capture=capture)), {})
    assert plan.writer is None
    assert plan.datasette is None


def test_datasette_for_everybody_is_refused_but_not_fatal(tmp_path: Path) -> None:
    backends = [{"name": "x", "url": "http://127.0.0.1:1"}]
    plan = plan_of(decide(config(tmp_path, backends=backends, datasette={"host": "0.0.0.0"})), {})
    assert plan.datasette is not None
    assert "without a password" in (plan.datasette.broken or "")


def test_the_writers_status_must_be_its_own(tmp_path: Path) -> None:
    probe = writer_ready(tmp_path)

    def ready(pid: int) -> bool:
        return asyncio.run(asyncio.wait_for(probe(Started(pid, 0.0, ())), 5))

    assert not ready(os.getpid())
    StatusFile(tmp_path).write(WriterStatus(), now=True)
    assert ready(os.getpid())
    assert not ready(os.getpid() + 1)
    StatusFile(tmp_path).write(WriterStatus(state="stopped"), now=True)
    assert not ready(os.getpid())


def test_a_port_of_mitmweb_that_is_taken(tmp_path: Path) -> None:
    try:
        held = socket.create_server(("127.0.0.1", 8081))
    except OSError:
        held = None  # taken already: as good
    try:
        setup = decide(config(tmp_path, server={"web": True}))
        assert setup.web_port not in (None, 0, 8081)
    finally:
        if held is not None:
            held.close()


def test_the_name_clients_use() -> None:
    assert served_name(Launch(model="org/m")) == "org/m"
    assert served_name(Launch(model="org/m", args={"served_model_name": ["x", "y"]})) == "x"
    assert served_name(Launch(model="org/m", args={"served-model-name": "z"})) == "z"
    assert served_name(Launch(model="org/m", args={"served-model-name": []})) == "org/m"
