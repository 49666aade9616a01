"""The chain for the tests of its three modules."""

from support.chain import under

__all__ = ["under"]
