"""`backends`: list, add, change, remove."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from llmtap.core import config_types as t
from llmtap.core.config import Backend

from .desk import ERRORS, Declined, TheDesk
from .inference import checked
from .rows import gateway, one, rows
from .shapes import BackendChange, BackendRow, Backends, BackendWish

router = APIRouter(prefix="/backends", tags=["backends"], responses=ERRORS)
BackendName = Annotated[str, Path(description="A backend's name.", min_length=1, max_length=128)]


@router.get("")
async def all_backends(desk: TheDesk) -> Backends:
    """Every backend, with its health and its process."""
    return Backends(backends=rows(desk, await gateway(desk)))


@router.post("", status_code=201)
async def add(wish: BackendWish, desk: TheDesk) -> BackendRow:
    """Send requests to a server that runs already. (`inference/up` starts one.)"""
    fields: dict[str, Any] = wish.model_dump(exclude_none=True)
    fields.setdefault("name", Backend.for_url(wish.url).name)
    backend = checked(lambda: Backend.model_validate(fields))
    return await one(desk, await desk.fleet.add(backend))


@router.get("/{name}")
async def get(name: BackendName, desk: TheDesk) -> BackendRow:
    """One backend."""
    return await one(desk, desk.fleet.member(name))


@router.patch("/{name}")
async def change(name: BackendName, wish: BackendChange, desk: TheDesk) -> BackendRow:
    """Change a backend while it serves. Holds until the configuration is loaded again."""
    member = desk.fleet.member(name)
    fields = wish.model_dump(exclude_unset=True)
    draining = fields.pop("draining", None)
    nulls = [key for key in ("max_concurrency", "on_client_disconnect") if key in fields and fields[key] is None]
    if nulls:
        raise Declined(422, "bad_request", f"{nulls[0]} cannot be null; leave it out", param=nulls[0])
    if fields:
        before = {key: getattr(member.backend, key) for key in Backend.model_fields}
        member = await desk.fleet.change(name, checked(lambda: Backend.model_validate({**before, **fields})))
    if draining is not None:
        member = await desk.fleet.set_draining(name, draining)
    return await one(desk, member)


@router.delete("/{name}", status_code=204)
async def remove(name: BackendName, desk: TheDesk, timeout_s: t.DurationOrNone | None = None) -> Response:
    """No further requests; when those under way have ended (at most `timeout_s`, else server.drain_timeout_s) it is gone, and
    with it the process the launcher may have started. One of the configuration file is back after a reload."""
    await desk.fleet.remove(name, timeout_s)
    return Response(status_code=204)
