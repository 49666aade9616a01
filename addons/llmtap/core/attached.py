"""Something of ours that belongs to an object of somebody else's: a flow's exchange, a flow's plan.

It is kept in the object's own `__dict__`, so it lives as long as the object and no longer, like an entry of a
`WeakKeyDictionary` at a tenth of its cost (which a gateway pays several times a request). mitmproxy saves and copies the
named parts of a flow, so nothing of it reaches a flow file.
"""

from __future__ import annotations


class Attached[K, T]:
    """The value of type T of an object of type K, under a name nobody else uses."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = f"llmtap {name}"  # a space: no attribute can have that name

    def get(self, key: K) -> T | None:
        found: T | None = key.__dict__.get(self._name)
        return found

    def __setitem__(self, key: K, value: T) -> None:
        key.__dict__[self._name] = value

    def __getitem__(self, key: K) -> T:
        try:
            found: T = key.__dict__[self._name]
        except KeyError:
            raise KeyError(key) from None
        return found

    def __contains__(self, key: K) -> bool:
        return self._name in key.__dict__

    def pop(self, key: K) -> None:
        """Forget it, if there is one."""
        key.__dict__.pop(self._name, None)
