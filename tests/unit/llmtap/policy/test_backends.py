"""The gateway's knowledge of its backends, and who gets a request."""

from __future__ import annotations

import pytest

from llmtap.core.errors import NoHealthyBackend, NotFound
from llmtap.policy.backends import Backend, Backends


def two() -> Backends:
    a = Backend("a", "127.0.0.1", 1, models=("m", "only-a"), state="up")
    b = Backend("b", "127.0.0.1", 2, models=("m",), state="up")
    return Backends([a, b])


def names(chosen: list[Backend]) -> list[str]:
    return [b.name for b in chosen]


def test_the_model_decides() -> None:
    assert names(two().choose("only-a")) == ["a"]
    assert sorted(names(two().choose("m"))) == ["a", "b"]
    assert sorted(names(two().choose(None))) == ["a", "b"]


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound) as caught:
        two().choose("nobody")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_a_model_whose_backends_are_down_is_unavailable_not_unknown() -> None:
    backends = two()
    backends.set_state("a", "down", "refused", 1.0)
    with pytest.raises(NoHealthyBackend):
        backends.choose("only-a")
    assert names(backends.choose("m")) == ["b"]


def test_nothing_healthy_is_unavailable_whatever_the_model() -> None:
    backends = two()
    for name in "ab":
        backends.set_state(name, "down", "refused", 1.0)
    with pytest.raises(NoHealthyBackend):
        backends.choose("nobody")
    assert not backends.healthy()


def test_a_backend_that_was_never_checked_may_serve_anything() -> None:
    backends = Backends([Backend("a", "h", 1)])
    assert names(backends.choose("whatever")) == ["a"]
    assert not backends.healthy()


def test_configured_models_win_over_discovered_ones() -> None:
    backends = Backends([Backend("a", "h", 1, fixed_models=("x",), models=("y",), state="up")])
    assert names(backends.choose("x")) == ["a"]
    with pytest.raises(NotFound):
        backends.choose("y")
    assert [card["id"] for card in backends.models()] == ["x"]


def test_in_flight_requests_count() -> None:
    backends = two()
    backends["a"].in_flight = 3
    assert all(backends.choose("m")[0].name == "b" for _ in range(4))


def test_models_are_a_union_of_healthy_backends() -> None:
    backends = two()
    backends["a"].model_cards = ({"id": "m", "max_model_len": 1}, {"id": "only-a"})
    backends["b"].model_cards = ({"id": "m", "max_model_len": 2},)
    assert [card["id"] for card in backends.models()] == ["m", "only-a"]
    backends.set_state("a", "down", "", 0.0)
    assert backends.models() == [{"id": "m", "max_model_len": 2}]


def test_a_state_change_is_told_once() -> None:
    backends = two()
    assert backends.set_state("a", "down", "x", 5.0) is True
    assert backends.set_state("a", "down", "y", 6.0) is False
    assert backends["a"].changed_at == 5.0 and backends["a"].reason == "y"


def test_url_and_key() -> None:
    backend = Backend("a", "::1", 8000, tls=True, api_key="secret")
    assert backend.url == "https://[::1]:8000"
    assert "secret" not in repr(backend)


def test_whether_it_matters_which_model_is_asked_for() -> None:
    def backends(*models: tuple[str, ...] | None) -> Backends:
        return Backends(Backend(str(i), "h", i, models=names) for i, names in enumerate(models))

    assert backends(("m", "n")).one_model() and backends(None).one_model() and backends(("m",), ("m",)).one_model()
    assert not backends(("m",), ("n",)).one_model()
    assert not backends(("m", "n"), ("m", "n")).one_model()
    assert not backends(None, ("m",)).one_model() and not backends(None, None).one_model()
