"""Keys: who is found, what is taken out of a request, and that neither depends on more than it should."""

from __future__ import annotations

import statistics
import time
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtap.core.config import Key
from llmtap.policy.keys import Client, Keyring, allowed, client_of, take, without_keys


def key(secret: str, **more: Any) -> Key:
    return Key.model_validate({"name": "k", "key_sha256": sha256(secret.encode()).hexdigest(), **more})


def test_only_the_very_key_is_found() -> None:
    ring = Keyring([key("sk-llmtap-right", name="a", priority=3), Key.model_validate({"name": "b", "key": "in-clear"})])
    found = ring.find(b"sk-llmtap-right")
    assert found is not None and (found.name, found.priority) == ("a", 3)
    assert (clear := ring.find(b"in-clear")) is not None and clear.name == "b"
    hexed = sha256(b"sk-llmtap-right").hexdigest().encode()
    for wrong in (b"", b"sk-llmtap-righ", b"sk-llmtap-right ", b"SK-LLMTAP-RIGHT", hexed):
        assert ring.find(wrong) is None
    assert len(ring) == 2


@pytest.mark.parametrize(
    ("written", "epoch"),
    [("2030-01-01", 1893456000), ("2030-01-01T01:00:00+01:00", 1893456000), ("2030-01-01T00:00:00", 1893456000), (None, None)],
)
def test_expiry_is_utc_unless_it_says(written: str | None, epoch: float | None) -> None:
    assert client_of(key("x", expires=written)).expires == epoch


HOST = (b"Host", b"gw")


@pytest.mark.parametrize(
    ("fields", "kept", "found"),
    [
        (((b"Authorization", b"Bearer k"), HOST), (HOST,), [b"k"]),
        ((HOST, (b"authorization", b"bearer   k  ")), (HOST,), [b"k"]),
        (((b"X-API-Key", b"k"), HOST), (HOST,), [b"k"]),
        (((b"x-api-key", b"second"), (b"authorization", b"Bearer first"), HOST), (HOST,), [b"first", b"second"]),
        (((b"authorization", b"Basic dXNlcg=="), HOST), (HOST,), []),
        (((b"api-key", b"k"), (b"Proxy-Authorization", b"Bearer k"), (b"x-goog-api-key", b"k"), HOST), (HOST,), []),
        (((b"x-api-kez", b"k"), HOST), ((b"x-api-kez", b"k"), HOST), []),
    ],
)
def test_what_is_taken(fields: Any, kept: Any, found: Any) -> None:
    assert take(fields) == (kept, found)


@given(st.lists(st.tuples(st.sampled_from([b"Host", b"AUTHORIZATION", b"x-api-key", b"X-Request-Id", b"cookie"]), st.binary())))
def test_nothing_else_is_taken_and_nothing_is_left(fields: list[tuple[bytes, bytes]]) -> None:
    kept, _ = take(tuple(fields))
    assert list(kept) == [f for f in fields if f[0].lower() not in (b"authorization", b"x-api-key")]


def test_without_any_the_very_same_fields_come_back() -> None:
    fields = (HOST, (b"accept", b"*/*"))
    assert take(fields)[0] is fields


@pytest.mark.parametrize(
    ("target", "clean"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models?a=1&b", "/v1/models?a=1&b"),
        ("/v1/models?api_key=s", "/v1/models"),
        ("/v1/models?a=1&API_KEY=s&b=2", "/v1/models?a=1&b=2"),
        ("/v1/models?access_token=s&api-key=t&apikey", "/v1/models"),
    ],
)
def test_keys_in_queries(target: str, clean: str) -> None:
    assert without_keys(target) == clean


def test_models() -> None:
    assert allowed(Client("k"), "any") and allowed(Client("k"), None)
    some = Client("k", models=frozenset(("m",)))
    assert allowed(some, "m") and not allowed(some, "n") and not allowed(some, None)


def test_a_look_up_takes_as_long_for_a_near_miss_as_for_a_far_one() -> None:
    """A comparison that stops at the first difference would show here as a step of time with the length of the common start."""
    secret = b"sk-llmtap-" + b"a" * 4096
    ring = Keyring([Key.model_validate({"name": "k", "key": secret.decode()})])
    guesses = {"far": b"z" * len(secret), "near": secret[:-1] + b"z", "right": secret}
    times: dict[str, list[int]] = {name: [] for name in guesses}
    for _ in range(300):
        for name, guess in guesses.items():  # in turn, so that a busy machine meets all of them alike
            start = time.perf_counter_ns()
            for _ in range(20):
                ring.find(guess)
            times[name].append(time.perf_counter_ns() - start)
    best = {name: statistics.median(sorted(found)[:150]) for name, found in times.items()}
    assert max(best.values()) / min(best.values()) < 1.15, best
