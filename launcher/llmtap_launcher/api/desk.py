"""What the routes work with, and the error they all answer with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel, Field

from llmtap_launcher.fleet import Fleet
from llmtap_launcher.gateway_link import GatewayLink


@dataclass(frozen=True, slots=True)
class Desk:
    """The launcher, as far as the API reaches. `status`: what `llmtap status` shows; `reload`: reads the configuration file
    again and returns the sections that have to wait for a restart (raises ConfigError; None: there is no file)."""

    fleet: Fleet
    link: GatewayLink
    status: Callable[[], Awaitable[dict[str, Any]]]
    reload: Callable[[], Awaitable[list[str] | None]]


def _desk(request: Request) -> Desk:
    found = request.app.state.desk
    assert isinstance(found, Desk)
    return found


#: a route's parameter of this type is the desk
TheDesk = Annotated[Desk, Depends(_desk)]


class Problem(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: str
    log: list[str] | None = Field(default=None, description="The last lines of the engine's output, where one did not start.")


class ErrorAnswer(BaseModel):
    """The body of every answer from 400."""

    error: Problem


class Declined(Exception):
    """Becomes an error answer."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, log: Sequence[str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kinds = {403: "permission_error", 404: "not_found_error", 503: "service_unavailable_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
        self.problem = Problem(message=message, type=kind, param=param, code=code, log=list(log) if log is not None else None)


#: what each route may answer beside success; FastAPI's own body for 422 is not used
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "It was not done, and why."},
}
