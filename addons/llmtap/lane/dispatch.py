"""Firing mitmproxy's hooks, as `AddonManager.trigger_event` does but without looking through every addon every time.

Same order and meaning: one chain element after the other; an exception is logged and skips the rest of its own element;
`AddonHalt` ends the event; after an event on a flow comes the `update` hook, and a held flow waits until it is resumed.
Two differences, both towards not hanging: what stock lets escape from a hook (`OptionsError`, a cancellation of the
addon's own) is logged like any other error, and a kill wakes a held flow.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import Any

from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.flow import Flow

from llmtap.lane import mitm

log = logging.getLogger("llmtap.lane")


Groups = tuple[tuple[mitm.Hook, ...], ...]


class Dispatcher:
    """`fire` returns None when every addon was done at once, else what has to be awaited."""

    def __init__(self, addons: AddonManager) -> None:
        self._addons = addons
        self._cache: dict[str, Groups] = {}
        self._only: dict[str, mitm.Hook] = {}  # where just one listens, as in a gateway without mitmproxy's own tools
        mitm.on_addons_changed(addons, self._forget)

    def _forget(self) -> None:
        self._cache.clear()
        self._only.clear()

    def _hooks(self, name: str) -> Groups:
        found = self._cache.get(name)
        if found is None:
            found = self._cache[name] = mitm.hooks_of(self._addons, name)
            if len(found) == 1 and len(found[0]) == 1:
                self._only[name] = found[0][0]
        return found

    def fire(self, name: str, data: Any) -> Awaitable[None] | None:
        """One event to all addons that listen to it. Never raises but for a cancellation of the caller."""
        groups = self._cache.get(name)
        if groups is None:
            groups = self._hooks(name)
        for at, group in enumerate(groups):
            try:
                for i, hook in enumerate(group):
                    waiting = hook(data)
                    if waiting is not None and inspect.isawaitable(waiting):
                        return self._rest(waiting, group[i + 1 :], groups[at + 1 :], data)
            except exceptions.AddonHalt:
                break
            except Exception as error:
                _log(error)
        return None

    def fire_flow(self, name: str, flow: Flow) -> Awaitable[None] | None:
        """`fire` for a flow: then comes the `update` hook, and a held flow waits."""
        only = self._only.get(name)
        if only is not None:  # four times a request
            try:
                waiting = only(flow)
            except Exception as error:
                waiting = None
                if not isinstance(error, exceptions.AddonHalt):
                    _log(error)
            if waiting is not None and inspect.isawaitable(waiting):
                return self._rest(waiting, (), (), flow)
        else:
            waiting = self.fire(name, flow)
            if waiting is not None:
                return waiting  # and the rest comes in `_rest`
        updates = self._cache.get("update")
        if flow.intercepted or updates is None or updates:
            return self._after(flow)
        return None

    async def _rest(self, waiting: Awaitable[None], group: tuple[mitm.Hook, ...], groups: Groups, data: Any) -> None:
        try:
            await self._guarded(waiting, group, data)
            for further in groups:
                await self._guarded(None, further, data)
        except exceptions.AddonHalt:
            pass
        if isinstance(data, Flow):
            after = self._after(data)
            if after is not None:
                await after

    async def _guarded(self, waiting: Awaitable[None] | None, group: tuple[mitm.Hook, ...], data: Any) -> None:
        """The rest of one group. Lets nothing out but AddonHalt and a cancellation of the task itself."""
        try:
            if waiting is not None:
                await waiting
            for hook in group:
                more = hook(data)
                if more is not None and inspect.isawaitable(more):
                    await more
        except exceptions.AddonHalt:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _log(error)  # something the addon awaited was cancelled, not this exchange
        except Exception as error:
            _log(error)

    def _after(self, flow: Flow) -> Awaitable[None] | None:
        for group in self._hooks("update"):
            try:
                for hook in group:
                    hook([flow])
            except exceptions.AddonHalt:
                break
            except Exception as error:
                _log(error)
        return mitm.resumed(flow) if flow.intercepted else None


def _log(error: BaseException) -> None:
    log.error("Addon error: %s", error, exc_info=(type(error), error, error.__traceback__))
