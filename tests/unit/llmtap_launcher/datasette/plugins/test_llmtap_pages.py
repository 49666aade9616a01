from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtap_launcher.datasette import command, metadata, security

FILE = command.HERE / "plugins" / "llmtap_pages.py"


@pytest.fixture(scope="module")
def plugin() -> Any:
    """Loaded as Datasette does it: from its path, under a name of its own."""
    spec = importlib.util.spec_from_file_location("llmtap_pages", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Urls:
    def table(self, database: str, table: str) -> str:
        return f"/{database}/{table}"

    def database(self, database: str) -> str:
        return f"/{database}"

    def path(self, path: str) -> str:
        return path


@pytest.fixture
def datasette() -> Any:
    async def view_names() -> list[str]:
        return ["requests"]

    memory = SimpleNamespace(name="_internal", is_memory=True)
    captures = SimpleNamespace(name="backup", is_memory=False, view_names=view_names)
    return SimpleNamespace(databases={"_internal": memory, "backup": captures}, urls=Urls())


def test_the_landing_page_is_the_requests_view_of_whatever_file_is_open(plugin: Any, datasette: Any) -> None:
    env = SimpleNamespace(filters={}, globals={})
    plugin.prepare_jinja2_environment(env=env, datasette=datasette)
    assert env.globals["llmtap"]["nav"][0] == {"name": "requests", "label": "Requests", "href": "/backup/requests"}
    assert list(plugin.get_metadata(datasette=datasette)["databases"]) == ["backup"]


async def test_the_root_leads_there(plugin: Any, datasette: Any) -> None:
    answer = await plugin.landing(datasette, None)
    assert (answer.status, answer.headers["Location"]) == (302, "/backup/requests")


def test_every_link_of_the_header_is_a_query_or_the_landing_page(plugin: Any) -> None:
    queries = metadata.load()["databases"]["capture"]["queries"]
    assert {name for name, _ in plugin.NAV} <= {plugin.LANDING, plugin.DASHBOARD, *queries}


async def test_answers_pass_the_guard(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def status() -> int:
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})

        async def send(message: Any) -> None:
            seen.append(message)

        await plugin.asgi_wrapper()(app)({"type": "http", "headers": [(b"host", b"localhost")]}, None, send)
        assert dict(seen[0]["headers"])[b"content-security-policy"] == security.POLICY.encode()
        return int(seen[0]["status"])

    monkeypatch.delenv(command.PASSWORD_VARIABLE, raising=False)
    assert await status() == 200
    monkeypatch.setenv(command.PASSWORD_VARIABLE, "secret")
    assert await status() == 401


def test_the_access_log_keeps_only_failures_of_ours(plugin: Any, datasette: Any, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("uvicorn.access")
    before = list(log.filters)
    plugin.startup(datasette=datasette)
    try:
        with caplog.at_level(logging.INFO, "uvicorn.access"):
            for status in (200, 404, 500):
                log.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/capture/search?q=secret", "1.1", status)
    finally:
        log.filters[:] = before
    assert [r.getMessage()[-3:] for r in caplog.records] == ["500"]


def test_templates_and_static_files_name_nothing_elsewhere() -> None:
    files = [p for folder in ("templates", "static") for p in (FILE.parents[1] / folder).iterdir()]
    assert len(files) > 8
    for path in files:
        text = path.read_text(encoding="utf-8").replace("https://datasette.io/", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, path
        assert "|safe" not in text.replace("urlencode|safe", ""), path
        assert path.suffix != ".html" or not any(word in text for word in (" onclick", " onload", "javascript:", "<script>")), (
            path
        )


def test_the_plugin_folder_holds_plugins_only() -> None:
    assert [p.name for p in FILE.parent.glob("*.py")] == [FILE.name]
    assert isinstance(FILE, Path)
