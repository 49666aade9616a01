"""The application: routers, errors in one shape, the page at `/api/docs`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from llmtap import __version__
from llmtap.core.errors import ConfigError
from llmtap_launcher.fleet import Conflict, Unknown
from llmtap_launcher.gateway_link import Refused
from llmtap_launcher.process import ProcessFailed

from . import backends, exchanges, inference, system
from .desk import Declined, Desk, ErrorAnswer
from .feedback import Feedback
from .page import page

#: in the order of the page
ROUTERS = (system.router, inference.router, backends.router)
PREFIX = "/api/v1"


def create_app(desk: Desk, feedback: Feedback | None = None) -> FastAPI:
    """The API over `desk`. `feedback`: its routes are served beside it."""
    app = FastAPI(
        title="llmtap management",
        version=__version__,
        summary="Backends, engines, requests and configuration of a running llmtap.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere, which machines with GPUs often cannot reach
        redoc_url=None,
    )
    app.state.desk = desk
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)

    @app.get("/api/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            page(app.openapi()), headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        )

    if feedback is not None:
        app.include_router(exchanges.router(feedback), prefix=PREFIX)
    app.add_exception_handler(Declined, _declined)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    for kind, status, code in (
        (Unknown, 404, "not_found"),
        (Conflict, 409, "conflict"),
        (ConfigError, 422, "invalid_configuration"),
        (Refused, 409, "refused_by_gateway"),
        (ProcessFailed, 422, "engine_failed"),
    ):
        app.add_exception_handler(kind, _told(status, code))
    return app


def _answer(declined: Declined, headers: dict[str, str] | None = None) -> JSONResponse:
    body = ErrorAnswer(error=declined.problem).model_dump()
    if declined.problem.log is None:
        del body["error"]["log"]
    return JSONResponse(body, declined.status, headers)


async def _declined(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Declined)
    return _answer(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    # the value itself is never echoed: it may be a key
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return _answer(Declined(422, "bad_request", message.encode("utf-8", "replace").decode(), param=where or None))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _answer(Declined(500, "internal_error", f"{type(error).__name__} in llmtap; its log says more"))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}
    declined = Declined(error.status_code, codes.get(error.status_code, "error"), str(error.detail))
    return _answer(declined, dict(error.headers) if error.headers else None)


def _told(status: int, code: str):  # type: ignore[no-untyped-def]
    async def handle(request: Request, error: Exception) -> JSONResponse:
        log = error.tail if isinstance(error, ProcessFailed) else None
        return _answer(Declined(status, code, str(error), log=log))

    return handle
