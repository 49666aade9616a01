"""`/api/v1/exchanges/{uid}`: the routes of `feedback`, in the description and on the page with all others."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from .desk import ERRORS, ErrorAnswer
from .feedback import Feedback, PatchIn, RatingIn, answering

Uid = Annotated[str, Path(description="The reply's x-request-id, also one that the client gave.", min_length=1, max_length=128)]


class Rated(BaseModel):
    """A rating that was taken. `uid` is the exchange's own id."""

    uid: str
    name: str
    source: str
    value: float | None
    string_value: str | None
    comment: str | None


class Rating(BaseModel):
    """One that is stored."""

    model_config = ConfigDict(extra="forbid")

    name: str
    source: str
    value: float | None
    string_value: str | None
    comment: str | None
    at: str = Field(description="When, in UTC.")
    corrected: bool = Field(description="Whether it came with a better reply.")


class Ratings(BaseModel):
    """All of an exchange, oldest first."""

    uid: str
    ratings: list[Rating]


class Changed(BaseModel):
    """What was changed."""

    uid: str
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None


def router(feedback: Feedback) -> APIRouter:
    """The three routes. Bodies and errors are `feedback`'s own: they are the same where it is served without this API."""
    made = APIRouter(prefix="/exchanges/{uid}", tags=["exchanges"], responses={**ERRORS, 503: {"model": ErrorAnswer}})
    rate_, list_, change_ = answering(feedback.rate), answering(feedback.ratings), answering(feedback.patch)

    @made.post("/ratings", status_code=201, responses={201: {"model": Rated}}, openapi_extra=_body(RatingIn))
    async def rate(uid: Uid, request: Request) -> Response:
        """Rate a reply: a thumb, a score, words, or a better reply (`correction`). One of the same name and source takes the
        place of the one before."""
        return await rate_(request)

    @made.get("/ratings", responses={200: {"model": Ratings}})
    async def ratings(uid: Uid, request: Request) -> Response:
        """The ratings of a reply."""
        return await list_(request)

    @made.patch("", responses={200: {"model": Changed}}, openapi_extra=_body(PatchIn))
    async def change(uid: Uid, request: Request) -> Response:
        """Give an exchange other tags (they take the place of those it had) or further metadata (null takes a member away)."""
        return await change_(request)

    return made


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}
