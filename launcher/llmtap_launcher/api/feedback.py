"""`/api/v1/exchanges/{uid}`: ratings of a reply, tags and metadata of an exchange.

    POST  /api/v1/exchanges/{uid}/ratings   a rating; 201
    GET   /api/v1/exchanges/{uid}/ratings   all of them
    PATCH /api/v1/exchanges/{uid}           tags, metadata; 200

`uid` is the reply's `x-request-id`, also one the client gave. What is accepted is in the spool when the answer comes. Where
keys are demanded, one may rate what it asked itself and nothing else: others' exchanges are not there for it (404).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from ulid import ULID

from llmtap.core.config import Config
from llmtap.core.errors import ApiError, BadRequest, NotFound, SpoolError, Unauthorized, error_body
from llmtap.core.feedback import Patch, Rating, encode
from llmtap.core.sockets import CLIENT_HEADER
from llmtap.policy.keys import Client, Keyring
from llmtap.spool.writer import SegmentWriter
from llmtap_launcher.store.database import StoreError, connect_ro

#: a reply that has just come may not be in the database yet
WAIT_S, _POLL_S = 3.0, 0.05
MAX_BODY = 1_000_000

Who = Callable[[Request], Client | None]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.:/-]+$")]


class _Unavailable(ApiError):
    """It cannot be kept, so it is not accepted."""

    status, type, default_code = 503, "service_unavailable_error", "capture_unavailable"
    retry_after_s = 5


class RatingIn(BaseModel):
    """What a client sends. `thumb` is short for `name: thumb, value: 1 or -1`."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = Field(default=None, description="What is rated: helpfulness, better ...")
    thumb: Literal["up", "down"] | None = None
    value: StrictBool | Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        default=None, description="A number; true and false are 1 and 0."
    )
    string_value: Annotated[str, Field(max_length=1000)] | None = None
    comment: Annotated[str, Field(max_length=20_000)] | None = None
    correction: str | dict[str, Any] | None = Field(
        default=None, description="The reply that would have been right: its text, or a whole message."
    )
    source: Name = Field(default="user", description="Who rates: user, a judge's name ...")

    @model_validator(mode="after")
    def _says_something(self) -> RatingIn:
        if self.thumb is not None and (self.value is not None or self.name not in (None, "thumb")):
            raise ValueError("thumb stands for name and value: give either")
        if self.thumb is None and self.name is None:
            raise ValueError("name is missing (or thumb: up, down)")
        if all(v is None for v in (self.thumb, self.value, self.string_value, self.comment, self.correction)):
            raise ValueError("says nothing: give value, string_value, comment or correction")
        return self

    def record(self, uid: str, at_us: int) -> Rating:
        """As it is spooled."""
        value = {"up": 1.0, "down": -1.0}[self.thumb] if self.thumb is not None else self.value
        correction = {"content": self.correction} if isinstance(self.correction, str) else self.correction
        return Rating(
            uid,
            at_us,
            self.name or "thumb",
            self.source,
            None if value is None else float(value),
            self.string_value,
            self.comment,
            correction,
        )


class PatchIn(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = None
    metadata: dict[str, Any] | None = None


class Feedback:
    """The three routes. `who` says whose request it is (None: nobody's in particular) or raises Unauthorized."""

    def __init__(
        self,
        spool: Path,
        database: Path,
        who: Who,
        *,
        worker: str = "api",
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._spool = spool
        self._worker = worker
        self._database = database
        self._who = who
        self._clock = clock
        self._segment: SegmentWriter | None = None

    def routes(self) -> list[Route]:
        """To be mounted."""
        return [
            Route("/api/v1/exchanges/{uid}/ratings", answering(self.rate), methods=["POST"]),
            Route("/api/v1/exchanges/{uid}/ratings", answering(self.ratings), methods=["GET"]),
            Route("/api/v1/exchanges/{uid}", answering(self.patch), methods=["PATCH"]),
        ]

    def close(self) -> None:
        """Releases the spool file; what was accepted is on the disk."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()

    async def rate(self, request: Request) -> Response:
        """Takes a rating."""
        uid = await self._find(request)
        given = RatingIn.model_validate(await _json(request))
        record = given.record(uid, self._clock())
        await self._keep(encode(record))
        shown = {"uid": uid, "name": record.name, "source": record.source, "value": record.value}
        return JSONResponse(shown | {"string_value": record.string_value, "comment": record.comment}, status_code=201)

    async def ratings(self, request: Request) -> Response:
        """What is known of an exchange."""
        uid = await self._find(request)
        return JSONResponse({"uid": uid, "ratings": await anyio.to_thread.run_sync(self._ratings, uid)})

    async def patch(self, request: Request) -> Response:
        """Changes tags and metadata."""
        uid = await self._find(request)
        given = PatchIn.model_validate(await _json(request))
        if given.tags is None and given.metadata is None:
            raise BadRequest("changes nothing: give tags or metadata")
        await self._keep(encode(Patch(uid, self._clock(), given.tags, given.metadata)))
        return JSONResponse({"uid": uid, **given.model_dump(exclude_none=True)})

    # finding and keeping

    async def _find(self, request: Request) -> str:
        """The exchange's own id. Waits a moment for one that is not stored yet."""
        client = self._who(request)
        ident = request.path_params["uid"]
        deadline = time.monotonic() + WAIT_S
        while True:
            found = await anyio.to_thread.run_sync(self._look, ident, None if client is None else client.name)
            if found is not None:
                return found
            if time.monotonic() >= deadline:
                raise NotFound("no exchange has this id", code="exchange_not_found")
            await anyio.sleep(_POLL_S)

    def _look(self, ident: str, key_name: str | None) -> str | None:
        try:
            with closing(connect_ro(self._database)) as conn:
                for column in ("uid", "request_id"):
                    row = conn.execute(
                        f"SELECT uid FROM exchanges WHERE {column} = ? AND (? IS NULL OR key_name = ?) ORDER BY id DESC LIMIT 1",
                        (ident, key_name, key_name),
                    ).fetchone()
                    if row is not None:
                        return str(row[0])
        except (StoreError, sqlite3.Error):
            return None
        return None

    def _ratings(self, uid: str) -> list[dict[str, Any]]:
        try:
            with closing(connect_ro(self._database)) as conn:
                sql = (
                    "SELECT name, source, value, string_value, comment, at, correction IS NOT NULL AS corrected FROM "
                    "ratings WHERE uid = ?"
                )
                return [
                    dict(row) | {"corrected": bool(row["corrected"])} for row in conn.execute(f"{sql} ORDER BY at, name", (uid,))
                ]
        except (StoreError, sqlite3.Error) as error:
            raise _Unavailable("the database cannot be read") from error

    async def _keep(self, json: bytes) -> None:
        """Into the spool, and to the disk. On the loop's thread but for the flush: appending has one thread."""
        try:
            if self._segment is None:
                self._segment = SegmentWriter(self._spool, self._worker, str(ULID()), 10_000_000)
            self._segment.append(json)
            await anyio.to_thread.run_sync(self._segment.sync)
        except SpoolError as error:
            raise _Unavailable("it cannot be kept now") from error


def by_key(config: Config) -> Who:
    """Who a request comes from, by its key; nobody in particular where none is demanded."""
    keyring = Keyring(config.auth.keys) if config.auth.enabled else None

    def who(request: Request) -> Client | None:
        if keyring is None:
            return None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        presented = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        client = keyring.find(presented.encode("utf-8", "surrogateescape")) if presented else None
        if client is None or (client.expires is not None and time.time() >= client.expires):
            raise Unauthorized("invalid API key" if presented else "no API key: send it as Authorization: Bearer KEY")
        return client

    return who


def by_gateway(request: Request) -> Client | None:
    """Who a request comes from that a gateway has let in and forwarded: the holder of the key it names, if any."""
    name = request.headers.get(CLIENT_HEADER)
    return None if name is None else Client(name)


def application(config: Config) -> Starlette:
    """The routes as an application of their own."""
    return Starlette(routes=Feedback(config.spool_dir, config.db_path, by_key(config)).routes())


async def _json(request: Request) -> Any:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise BadRequest(f"the body is larger than {MAX_BODY} bytes")
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise BadRequest("the body is not JSON") from error


def answering(route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The route with its errors as OpenAI's clients expect them."""

    async def answer(request: Request) -> Response:
        try:
            return await route(request)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            refused: ApiError = BadRequest(f"{where + ': ' if where else ''}{first['msg']}", param=where or None)
        except ApiError as error:
            refused = error
        headers = {"retry-after": str(int(refused.retry_after_s))} if refused.retry_after_s else None
        return Response(error_body(refused, "openai"), refused.status, headers, "application/json")

    return answer
