"""The Datasette plugin: hooks only, each a line or two over the modules of `llmtap_launcher.datasette`.

https://docs.datasette.io/en/0.65.2/plugin_hooks.html
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import orjson
from datasette.hookspecs import hookimpl
from datasette.utils import asgi

from llmtap import __version__
from llmtap_launcher.datasette import cells, conversation, dashboard, facets, metadata, page, percentile, security
from llmtap_launcher.datasette.command import PASSWORD_VARIABLE, STATIC_MOUNT
from llmtap_launcher.store import request_of

_Response: Any = asgi.Response  # Datasette has no type annotations
LANDING = "requests"
DASHBOARD = "/-/dashboard"
#: tables and queries by name; a path for pages of our own
NAV = (
    ("requests", "Requests"),
    ("conversations", "Conversations"),
    ("search", "Search"),
    (DASHBOARD, "Dashboard"),
    ("slow", "Slow"),
    ("errors", "Errors"),
    ("latency", "Latency"),
    ("tokens_per_hour", "Tokens"),
    ("cost", "Cost"),
    ("compare", "Compare"),
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
    password = os.environ.get(PASSWORD_VARIABLE) or None
    return lambda app: security.guard(app, password)


@hookimpl
def register_facet_classes() -> list[Any]:
    return [facets.TogetherFacet]


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
        "nav": [
            {"name": n, "label": label, "href": datasette.urls.path(n) if n.startswith("/") else datasette.urls.table(name, n)}
            for n, label in NAV
        ],
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
    return [
        (r"^/$", landing),
        (r"^/-/transcript/(?P<uid>[^/]+)$", transcript),
        (r"^/-/conversation/(?P<number>[0-9]{1,18})$", talk),
        (r"^/-/dashboard$", board),
        (r"^/-/request/(?P<uid>[^/]+)\.json$", request_body),
        (r"^/-/attachment/(?P<hash>[0-9a-f]{32})$", attachment),
    ]


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


async def _allowed(datasette: Any, request: Any) -> Any:
    """The database, for a reader who may see it."""
    db = _capture(datasette)
    await datasette.ensure_permissions(request.actor, [("view-database", db.name), "view-instance"])
    return db


async def _missing(datasette: Any, request: Any, words: str) -> Any:
    # not by raising NotFound: Datasette then redirects a path with a percent sign
    return _Response.html(
        await datasette.render_template("error.html", {"status": 404, "error": words}, request=request), status=404
    )


async def transcript(datasette: Any, request: Any) -> Any:
    await _allowed(datasette, request)
    found = await _load(datasette, unquote(request.url_vars["uid"]), bool(request.args.get("all")))
    if found is None:
        return await _missing(datasette, request, "No exchange has this id.")
    html = await datasette.render_template("transcript.html", {"transcript": found, "database": None}, request=request)
    return _Response.html(html, headers={"cache-control": "no-cache"})


async def talk(datasette: Any, request: Any) -> Any:
    """A conversation is shown at its last turn, which has all the others above it."""
    db = await _allowed(datasette, request)
    number = int(request.url_vars["number"])
    uid = await db.execute_fn(lambda conn: conversation.last_turn(conn, number))
    if uid is None:
        return await _missing(datasette, request, "There is no such conversation.")
    return _Response.redirect(datasette.urls.path(cells.transcript_path(uid)))


async def board(datasette: Any, request: Any) -> Any:
    db = await _allowed(datasette, request)
    args = {name: request.args.get(name) or "" for name in ("range", "model", "key")}
    found = await db.execute_fn(lambda conn: dashboard.load(conn, args))
    shown = dashboard.context(found, datasette.urls.path(DASHBOARD))
    shown["links"] = [
        (f"{words} {kind.upper()}", f"{datasette.urls.table(db.name, table)}.{kind}?_sort_desc={column}&_size=max")
        for words, table, column in (("Usage", "usage_hourly", "hour"),)
        for kind in ("csv", "json")
    ]
    html = await datasette.render_template("dashboard.html", {"board": shown, "database": None}, request=request)
    return _Response.html(html, headers={"cache-control": "no-cache"})


async def request_body(datasette: Any, request: Any) -> Any:
    """The request as a client sent it, for a replay."""
    db = await _allowed(datasette, request)
    uid = unquote(request.url_vars["uid"])
    found = await db.execute_fn(lambda conn: request_of.request_of(conn, uid))
    if found is None:
        return _Response.json({"error": "no messages are stored for this id"}, status=404)
    return _Response(
        orjson.dumps(found).decode(), content_type="application/json; charset=utf-8", headers={"cache-control": "no-cache"}
    )


async def attachment(datasette: Any, request: Any) -> Any:
    """A picture out of a message. Only formats that a browser paints and does not run; anything else is a download."""
    db = await _allowed(datasette, request)
    hashed = bytes.fromhex(request.url_vars["hash"])
    row = await db.execute_fn(
        lambda conn: conn.execute("select mime, content from attachments where hash = ?", (hashed,)).fetchone()
    )
    if row is None:
        return _Response.text("no such attachment", status=404)
    mime, content = row[0], bytes(row[1])
    shown = mime in security.PICTURES
    headers = {"content-security-policy": security.PICTURE_POLICY, "cache-control": "private, max-age=86400"}
    if not shown:
        headers["content-disposition"] = f'attachment; filename="{hashed.hex()}"'
    return _Response(content, content_type=mime if shown else "application/octet-stream", headers=headers)


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
    if request and request.path == datasette.urls.path(DASHBOARD):
        seen = DASHBOARD
    return {"llmtap_here": seen, "llmtap_transcript": load_transcript}
