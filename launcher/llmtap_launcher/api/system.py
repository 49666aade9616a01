"""`status`, `reload`, `inflight`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from .desk import ERRORS, Declined, TheDesk
from .rows import gateway, rows
from .shapes import Cancelled, Inflight, Reloaded, Request, Status

router = APIRouter(responses=ERRORS)
RequestId = Annotated[str, Path(description="`id` of a request in flight.", min_length=1, max_length=128)]


@router.get("/status", tags=["status"])
async def status(desk: TheDesk) -> Status:
    """Launcher, gateway, writer, database, and every backend."""
    told = await gateway(desk)
    found = await desk.status()
    return Status(
        launcher=found["launcher"],
        gateway=told,
        writer=found["writer"],
        backends=rows(desk, told),
        in_flight=(told or {}).get("in_flight", 0),
        waiting=(told or {}).get("waiting", 0),
        data=found["data"],
        database=found["database"],
        database_bytes=found["database_bytes"],
    )


@router.post("/reload", tags=["configuration"])
async def reload(desk: TheDesk) -> Reloaded:
    """Read the configuration file again. A wrong one is refused, and the old one stays in force."""
    waiting = await desk.reload()
    if waiting is None:
        raise Declined(409, "no_configuration_file", "there is no configuration file: llmtap was started with defaults")
    return Reloaded(reloaded=True, waits_for_restart=waiting)


@router.get("/inflight", tags=["requests"])
async def in_flight(desk: TheDesk) -> Inflight:
    """Every request that has not ended."""
    found = [Request.model_validate(row) for rows in await desk.link.ask("in_flight") for row in rows]
    return Inflight(requests=sorted(found, key=lambda request: -request.age_s))


@router.get("/inflight/{uid}", tags=["requests"])
async def one_in_flight(uid: RequestId, desk: TheDesk) -> Request:
    """One of them."""
    for request in (await in_flight(desk)).requests:
        if request.id == uid:
            return request
    raise Declined(404, "request_not_found", "there is no such request in flight", param="uid")


@router.delete("/inflight/{uid}", tags=["requests"])
@router.post("/inflight/{uid}/cancel", tags=["requests"])
async def cancel(uid: RequestId, desk: TheDesk) -> Cancelled:
    """End a request: its client gets an error, a stream its last event."""
    if not any(await desk.link.ask("cancel", uid=uid)):
        raise Declined(404, "request_not_found", "there is no such request in flight", param="uid")
    return Cancelled(cancelled=uid)
