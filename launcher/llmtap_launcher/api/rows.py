"""Backends as the API shows them: what the launcher and what the gateways know of each, put together."""

from __future__ import annotations

from typing import Any

from llmtap_launcher.members import Member

from .desk import Desk
from .shapes import BackendRow, row


def merged(answers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The numbers of all gateways as those of one; None without any."""
    if not answers:
        return None
    first = dict(answers[0])
    for key in ("in_flight", "waiting"):
        first[key] = sum(int(answer.get(key, 0)) for answer in answers)
    first["backends"] = [dict(backend) for backend in first.get("backends", [])]
    for backend in first["backends"]:
        same = [other for answer in answers for other in answer["backends"] if other["name"] == backend["name"]]
        backend["in_flight"] = sum(int(other["in_flight"]) for other in same)
    return first


async def gateway(desk: Desk) -> dict[str, Any] | None:
    """What the gateways say, as one."""
    return merged(await desk.link.ask("stats"))


def rows(desk: Desk, told: dict[str, Any] | None) -> list[BackendRow]:
    seen = {backend["name"]: backend for backend in (told or {}).get("backends", [])}
    return [row(member, seen.get(name)) for name, member in desk.fleet.members.items()]


async def one(desk: Desk, member: Member) -> BackendRow:
    told = await gateway(desk)
    return row(member, next((b for b in (told or {}).get("backends", []) if b["name"] == member.name), None))
