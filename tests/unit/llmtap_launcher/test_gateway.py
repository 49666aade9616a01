import os
import re
import sys
from pathlib import Path

from llmtap.master import READY
from llmtap_launcher.gateway import LISTENS, child_env, foreign_env, gateway_argv, source_roots, web_url

ROOT = Path(__file__).resolve().parents[3]


def test_the_gateway_alone_and_mitmweb() -> None:
    argv = gateway_argv(Path("/x/gateway.py"), Path("/run/gateway.yaml"), Path("/run/mitm"))
    assert argv == [sys.executable, "-P", "-m", "llmtap.master", "--config", "/run/gateway.yaml", "--confdir", "/run/mitm"]
    web = gateway_argv(Path("/x/gateway.py"), Path("/run/gateway.yaml"), Path("/run/mitm"), web_port=8082)
    assert web[:2] == [sys.executable, "-P"] and "mitmweb()" in web[3] and web[4:6] == ["-s", "/x/gateway.py"]
    settings = {web[i + 1] for i, part in enumerate(web) if part == "--set"}
    assert settings == {
        "confdir=/run/mitm",
        "llmtap_config=/run/gateway.yaml",
        "llmtap_writer=false",
        "web_host=127.0.0.1",
        "web_port=8082",
        "web_open_browser=false",
    }


def test_the_gateway_is_told_where_the_launchers_sockets_are() -> None:
    paths = Path("/x/gateway.py"), Path("/run/gateway.yaml"), Path("/run/mitm")
    assert gateway_argv(*paths, sockets=Path("/run"))[-2:] == ["--launcher", "/run"]
    assert "llmtap_launcher=/run" in gateway_argv(*paths, web_port=8082, sockets=Path("/run"))


def test_own_processes_find_the_packages_and_read_one_configuration() -> None:
    roots = source_roots()
    assert roots == [str(ROOT / "addons"), str(ROOT / "launcher")]
    env = child_env(
        "r1",
        {"LLMTAP_SERVER__PORT": "1", "LLMTAP_BACKENDS": "[]", "A": "1", "PYTHONPATH": f"/mine{os.pathsep}{roots[0]}"},
    )
    assert env == {
        "A": "1",
        "LLMTAP_RUN": "r1",
        "PYTHONPATH": os.pathsep.join([*roots, "/mine"]),
        "PYTHONUNBUFFERED": "1",
    }


def test_foreign_processes_do_not() -> None:
    roots = source_roots()
    assert foreign_env("r1", {"PYTHONPATH": roots[1], "VIRTUAL_ENV": "/v", "HOME": "/h"}) == {"HOME": "/h", "LLMTAP_RUN": "r1"}
    env = foreign_env("r1", {"PYTHONPATH": os.pathsep.join(["/mine", roots[1]]), "PYTHONUNBUFFERED": "x"})
    assert env == {"PYTHONPATH": "/mine", "PYTHONUNBUFFERED": "1", "LLMTAP_RUN": "r1"}


def test_the_web_address_is_found_in_the_output() -> None:
    said = "[02:04:57.435] Web server listening at http://127.0.0.1:28777/?token=6027d2cb464f4bfa6f1860c7054d6b24"
    assert web_url(["Loading script", said]) == "http://127.0.0.1:28777/?token=6027d2cb464f4bfa6f1860c7054d6b24"
    assert web_url(["Web server listening at http://127.0.0.1:28777/"]) is None


def test_one_of_several_is_told_where_they_meet() -> None:
    argv = gateway_argv(Path("s"), Path("c"), Path("m"), shared_metrics=Path("/x"))
    assert argv[-3:] == ["--shared-metrics", "/x", "--say-ready"]
    assert re.match(LISTENS, READY)
    assert "--shared-metrics" not in gateway_argv(Path("s"), Path("c"), Path("m"))
