"""`inference/up`, `inference/down`, `models/load`, `models/unload`: engines that the launcher runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError

from llmtap.core.config import Backend, Launch
from llmtap_launcher.fleet import Conflict, Fleet, Unknown
from llmtap_launcher.members import Member
from llmtap_launcher.process import ProcessFailed
from llmtap_launcher.settle import settled

from .desk import ERRORS, Declined, Desk, TheDesk
from .rows import one
from .shapes import Down, ModelWish, Ready, Stopped, Up

router = APIRouter(responses=ERRORS)


@router.post("/inference/up", tags=["inference"])
async def up(wish: Up, desk: TheDesk) -> Ready:
    """Start an engine for a model. Answers when requests for it are served, or when it failed: then with what it said last.

    The same wish again answers at once. Nothing else waits meanwhile.
    """
    began = time.monotonic()
    fleet = desk.fleet
    launch = launch_of(wish)
    known = member = _known(fleet, wish, launch)
    if member is None:
        try:
            member = await fleet.add(_backend(fleet, wish, launch))
        except Conflict:  # somebody has wished for the same at the same time
            known = member = _known(fleet, wish, launch)
            if member is None:
                raise
    if known is not None:
        await fleet.bring(member)
    if not await fleet.seen(member):
        row = await one(desk, member)
        if known is None:
            with contextlib.suppress(Unknown):  # removed meanwhile
                await fleet.remove(member.name, 0.0)
        why = row.reason or "it does not answer"
        raise ProcessFailed(f"{member.name} has started, but the gateway cannot use it: {why}", list(_tail(member)))
    return Ready(backend=await one(desk, member), seconds=round(time.monotonic() - began, 3))


@router.post("/inference/down", tags=["inference"])
async def down(wish: Down, desk: TheDesk) -> Stopped:
    """Stop an engine: no further requests, those under way end, the process ends. One that the configuration names stays
    known, and `up` or `models/load` starts it again."""
    fleet = desk.fleet
    if (wish.name is None) == (wish.model is None):
        raise Declined(422, "bad_request", "give either name or model")
    found = [fleet.member(wish.name)] if wish.name is not None else fleet.launched(wish.model or "")
    await asyncio.gather(*(_down(fleet, member, wish.timeout_s) for member in found))
    return Stopped(stopped=[member.name for member in found])


async def _down(fleet: Fleet, member: Member, patience_s: float | None) -> None:
    if member.process is None:
        raise Declined(
            409, "not_ours", f"{member.name} was not started by llmtap; DELETE /api/v1/backends/{member.name} removes it"
        )
    if member.origin == "api":
        await fleet.remove(member.name, patience_s)
    else:
        await fleet.rest(member, resumes=False, patience_s=patience_s)


@router.post("/models/load", tags=["models"])
async def load(wish: ModelWish, desk: TheDesk) -> Ready:
    """Have a model that a backend of ours is configured for ready now, instead of at the first request."""
    began = time.monotonic()
    member = desk.fleet.launched(wish.model)[0]
    await desk.fleet.bring(member)
    await desk.fleet.seen(member)
    return Ready(backend=await one(desk, member), seconds=round(time.monotonic() - began, 3))


@router.post("/models/unload", tags=["models"])
async def unload(wish: ModelWish, desk: TheDesk) -> Stopped:
    """Free the memory of a model: its backends stop (or sleep). One with `ttl_s` or `group` starts again when a request needs
    it, the others when they are loaded."""
    found = desk.fleet.launched(wish.model)
    await asyncio.gather(*(_unload(desk, member) for member in found))
    return Stopped(stopped=[member.name for member in found])


async def _unload(desk: Desk, member: Member) -> None:
    on_demand = member.backend.launch is not None and member.backend.launch.on_demand
    await desk.fleet.rest(member, resumes=on_demand)


def launch_of(wish: Up) -> Launch:
    """How the engine is started. Raises Declined."""
    args: dict[str, Any] = dict(wish.args)
    if wish.dtype is not None:
        if args.get("dtype", wish.dtype) != wish.dtype:
            raise Declined(422, "bad_request", "dtype and args.dtype differ", param="dtype")
        args["dtype"] = wish.dtype
    more = {key: value for key in ("startup_timeout_s", "ttl_s", "group") if (value := getattr(wish, key)) is not None}
    return checked(lambda: Launch(engine=wish.engine, model=wish.model, args=args, env=wish.env, **more))


def _known(fleet: Fleet, wish: Up, launch: Launch) -> Member | None:
    """The backend that is what is wished for already. Raises Declined where one is nearly."""
    if wish.name is not None:
        named = fleet.members.get(wish.name)
        same = [named] if named is not None else []
    else:
        same = [m for m in fleet.members.values() if m.backend.launch is not None and m.backend.launch.model == wish.model]
    for member in same:
        there = member.backend.launch
        # how a backend of the configuration finds its engine is not for the API to say
        if there is not None and launch.model_copy(update={"command": there.command, "venv": there.venv}) == there:
            return member
    if same:
        hint = "" if wish.name is not None else "; give a name to start another"
        raise Declined(409, "conflict", f"there is a backend {same[0].name} with other settings{hint}", param="name")
    return None


def _backend(fleet: Fleet, wish: Up, launch: Launch) -> Backend:
    fields: dict[str, Any] = {"name": wish.name or name_for(wish.model, fleet.members), "launch": launch}
    if wish.port is not None:
        fields["url"] = f"http://127.0.0.1:{wish.port}"
    if wish.max_concurrency is not None:
        fields["max_concurrency"] = wish.max_concurrency
    return settled(checked(lambda: Backend(**fields)), fleet.free_port)


def name_for(model: str, taken: Any) -> str:
    """`Qwen/Qwen2.5-1.5B` → Qwen2.5-1.5B; with -2, -3 ... when that is taken."""
    base = re.sub(r"[^A-Za-z0-9_.-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.")[:56] or "model"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def checked[T](make: Callable[[], T]) -> T:
    """What `make` makes. Raises Declined (422) for what the configuration would not allow."""
    try:
        return make()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Declined(422, "bad_request", f"{where}: {first['msg']}" if where else first["msg"], param=where or None) from None


def _tail(member: Member) -> list[str]:
    return list(member.process.tail) if member.process is not None else []
