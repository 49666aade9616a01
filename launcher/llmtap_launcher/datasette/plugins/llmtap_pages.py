"""The Datasette plugin: hooks only, each a line or two over the modules of `llmtap_launcher.datasette`.

https://docs.datasette.io/en/0.65.2/plugin_hooks.html
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from datasette.hookspecs import hookimpl
from datasette.utils import asgi

from llmtap import __version__
from llmtap_launcher.datasette import cells, conversation, metadata, page, percentile, security
from llmtap_launcher.datasette.command import STATIC_MOUNT

_Response: Any = asgi.Response  # Datasette has no type annotations
LANDING = "requests"
NAV = (
    ("requests", "Requests"),
    ("slow", "Slow"),
    ("errors", "Errors"),
    ("latency", "Latency"),
    ("tokens_per_hour", "Tokens"),
    ("search", "Search"),
)


def _capture(datasette: Any) -> Any:
    """The one database that is a file: the captures, whatever the file is called."""
    return next(db for db in datasette.databases.values() if not db.is_memory)


@hookimpl
def startup(datasette: Any) -> None:
    class ErrorsOnly(logging.Filter):
        """Drops uvicorn's line per page: its URLs carry what the reader searched for. Arguments end with the HTTP status."""

        def filter(self, record: logging.LogRecord) -> bool:
            status = record.args[-1] if isinstance(record.args, tuple) and record.args else None
            return not isinstance(status, int) or status >= 500

    logging.getLogger("uvicorn.access").addFilter(ErrorsOnly())


@hookimpl
def asgi_wrapper() -> Callable[[security.App], security.App]:
    return security.guard


@hookimpl
def prepare_connection(conn: sqlite3.Connection) -> None:
    percentile.register(conn)


@hookimpl
def prepare_jinja2_environment(env: Any, datasette: Any) -> None:
    name = _capture(datasette).name
    env.filters["llmtap_label"] = metadata.label
    env.globals["llmtap_hidden"] = metadata.hidden
    # globals, because Datasette renders its error page without the variables of plugins
    env.globals["llmtap"] = {
        "nav": [{"name": n, "label": label, "href": datasette.urls.table(name, n)} for n, label in NAV],
        "names": [n for n, _ in NAV],
        "url": datasette.urls.database(name),
        "static": datasette.urls.path("/" + STATIC_MOUNT),
        "version": __version__,
    }


@hookimpl
def get_metadata(datasette: Any) -> dict[str, Any]:
    return metadata.for_database(_capture(datasette).name)


@hookimpl
def register_routes() -> list[tuple[str, Callable[..., Any]]]:
    return [(r"^/$", landing), (r"^/-/transcript/(?P<uid>[^/]+)$", transcript)]


async def landing(datasette: Any, request: Any) -> Any:
    db = _capture(datasette)
    if LANDING not in await db.view_names():
        wait = {
            "status": 503,
            "title": "Nothing here yet",
            "error": "The writer has not made its tables yet. Reload in a moment.",
        }
        return _Response.html(await datasette.render_template("error.html", wait, request=request), status=503)
    return _Response.redirect(datasette.urls.table(db.name, LANDING))


async def transcript(datasette: Any, request: Any) -> Any:
    await datasette.ensure_permissions(request.actor, [("view-database", _capture(datasette).name), "view-instance"])
    found = await _load(datasette, unquote(request.url_vars["uid"]), bool(request.args.get("all")))
    if found is None:
        # not by raising NotFound: Datasette then redirects a path with a percent sign
        missing = {"status": 404, "error": "No exchange has this id."}
        return _Response.html(await datasette.render_template("error.html", missing, request=request), status=404)
    html = await datasette.render_template("transcript.html", {"transcript": found, "database": None}, request=request)
    return _Response.html(html, headers={"cache-control": "no-cache"})


async def _load(datasette: Any, ident: str, everything: bool = False) -> dict[str, Any] | None:
    db = _capture(datasette)
    it = await db.execute_fn(lambda conn: conversation.load(conn, ident, everything))
    return None if it is None else page.context(it, datasette.urls.database(db.name), datasette.urls.path)


@hookimpl
def render_cell(row: Any, value: Any, column: str, datasette: Any) -> Any:
    return cells.cell(column, value, row, datasette.urls.path)


@hookimpl
def extra_template_vars(datasette: Any, request: Any) -> dict[str, Any]:
    async def load_transcript(ident: str) -> dict[str, Any] | None:
        return await _load(datasette, ident.strip()) if ident.strip() else None

    # error pages and our own route have no url_vars of a table
    seen = ((request.scope.get("url_route") or {}).get("kwargs") or {}).get("table", "") if request else ""
    return {"llmtap_here": seen, "llmtap_transcript": load_transcript}
