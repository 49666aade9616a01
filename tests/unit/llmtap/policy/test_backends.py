"""The gateway's knowledge of its backends, and who gets a request."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from llmtap.core.errors import NoHealthyBackend, NotFound
from llmtap.policy.backends import Backend, Backends, Scope, State


def two(**more: Any) -> Backends:
    a = Backend("a", "127.0.0.1", 1, models=("m", "only-a"), state="up")
    b = Backend("b", "127.0.0.1", 2, models=("m",), state="up")
    return Backends([a, b], **more)


def serving(backends: Backends, model: str | None, scope: Scope = "any") -> list[str]:
    """Who would get a request for the model, its fallbacks' backends behind."""
    return [b.name for way in backends.ways(scope, model) for b in way.members]


def picked(backends: Backends, model: str | None, times: int = 1, **more: Any) -> Counter[str | None]:
    way = backends.ways("any", model)[0]
    found = [backends.pick(way, **more) for _ in range(times)]
    return Counter(b.name if b is not None else None for b in found)


# ---- who serves what


def test_the_model_decides() -> None:
    assert serving(two(), "only-a") == ["a"]
    assert serving(two(), "m") == serving(two(), None) == ["a", "b"]


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound) as caught:
        two().ways("any", "nobody")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_a_model_whose_backends_are_away_is_unavailable_not_unknown() -> None:
    for state in ("down", "asleep", "stopped"):
        backends = two()
        backends.set_state("a", state, "refused", 1.0)  # type: ignore[arg-type]
        with pytest.raises(NoHealthyBackend):
            backends.ways("any", "only-a")
        assert serving(backends, "m") == ["b"]


def test_nothing_healthy_is_unavailable_whatever_the_model() -> None:
    backends = two()
    for name in "ab":
        backends.set_state(name, "down", "refused", 1.0)
    for model in ("nobody", "m", None):
        with pytest.raises(NoHealthyBackend):
            backends.ways("any", model)
    assert not backends.healthy()
    with pytest.raises(NoHealthyBackend):
        Backends().ways("any", "m")


def test_a_backend_that_was_never_checked_may_serve_anything() -> None:
    backends = Backends([Backend("a", "h", 1)])
    assert serving(backends, "whatever") == ["a"]
    assert not backends.healthy()


def test_configured_models_win_over_discovered_ones() -> None:
    backends = Backends([Backend("a", "h", 1, fixed_models=("x",), models=("y",), state="up")])
    assert serving(backends, "x") == ["a"] and backends.known("x") and not backends.known("y")
    with pytest.raises(NotFound):
        backends.ways("any", "y")
    assert [card["id"] for card in backends.models()] == ["x"]


def test_what_is_discovered_later_counts_from_then_on() -> None:
    backends = two()
    with pytest.raises(NotFound):
        backends.ways("any", "new")
    backends.set_models("b", ({"id": "new"},), ("new",))
    assert serving(backends, "new") == ["b"] and serving(backends, "m") == ["a"]


def test_kinds_and_ports() -> None:
    tagged = ({"name": "llama3:latest", "size": 1},)
    ollama = Backend("o", "h", 11434, models=("llama3:latest", "m"), tags=tagged, state="up", kind="ollama")
    vllm = Backend("v", "h", 8000, models=("m",), state="up")
    backends = Backends([ollama, vllm], aliases={"l": "llama3"})
    assert serving(backends, "m", "ollama") == serving(backends, None, 11434) == ["o"]
    assert serving(backends, "m", "openai") == serving(backends, None, 8000) == ["v"]
    assert serving(backends, "llama3") == serving(backends, "l") == ["o"], "Ollama's names mean :latest without a tag"
    assert [t["name"] for t in backends.tags()] == ["llama3:latest", "l"]
    with pytest.raises(NotFound):
        backends.ways("any", "llama3:8b")
    with pytest.raises(NoHealthyBackend):
        backends.ways(9, None)


def test_what_clients_make_up_does_not_fill_memory() -> None:
    backends = Backends([Backend("a", "h", 1)])
    for i in range(5000):
        backends.ways("any", f"made-up-{i}")
    assert len(backends._ways) <= 1024


# ---- aliases and fallbacks


def test_an_alias_is_served_under_the_served_name() -> None:
    backends = two(aliases={"gpt-4": "only-a", "lost": "nobody"})
    way = backends.ways("any", "gpt-4")[0]
    assert (way.model, way.members[0].name) == ("only-a", "a")
    with pytest.raises(NotFound) as caught:
        backends.ways("any", "lost")
    assert "`lost`" in caught.value.message
    backends["a"].model_cards = ({"id": "only-a", "root": "org/only-a", "max_model_len": 8},)
    assert backends.models()[1] == {"id": "gpt-4", "root": "org/only-a", "max_model_len": 8} and backends.known("gpt-4")


def test_fallbacks_come_after_and_alone_when_nobody_else_is_left() -> None:
    backends = two(aliases={"big": "only-a"}, fallbacks={"big": ["m", "nobody"], "only-a": ["big", "m"]})
    assert [(w.model, [b.name for b in w.members]) for w in backends.ways("any", "big")] == [
        ("only-a", ["a"]),
        ("m", ["a", "b"]),
    ]
    assert [w.model for w in backends.ways("any", "only-a")] == ["only-a", "m"], "no model twice"
    backends.set_state("a", "down", "", 0.0)
    assert [(w.model, [b.name for b in w.members]) for w in backends.ways("any", "big")] == [("m", ["b"])]


def test_the_fallbacks_of_a_served_name_hold_for_its_aliases() -> None:
    backends = two(aliases={"alias": "only-a"}, fallbacks={"only-a": ["m"]})
    assert [w.model for w in backends.ways("any", "alias")] == ["only-a", "m"]


# ---- the choice


def test_in_flight_requests_count() -> None:
    backends = two()
    backends["a"].in_flight = 3
    assert picked(backends, "m", 4) == {"b": 4}


def test_idle_backends_take_turns_for_each_model() -> None:
    backends = two()
    seen: Counter[str | None] = Counter()
    for _ in range(10):  # asked for alternately, neither may stick to one backend
        seen += picked(backends, "m")
        picked(backends, None)
    assert seen == {"a": 5, "b": 5}


def test_full_backends_are_passed_over_until_nobody_has_room() -> None:
    backends = two()
    for backend in backends:
        backend.max_concurrency = 2
    way = backends.ways("any", "m")[0]
    for _ in range(4):
        chosen = backends.pick(way)
        assert chosen is not None
        backends.take(chosen)
    assert [b.in_flight for b in backends] == [2, 2] and backends.in_flight == 4
    assert backends.pick(way) is None and backends.pick(backends.ways("any", "only-a")[0]) is None
    backends.release(backends["b"])
    assert picked(backends, "m") == {"b": 1}


def test_a_small_backend_that_is_full_does_not_hide_a_large_one() -> None:
    backends = two()
    backends["a"].max_concurrency = 1
    backends["a"].in_flight, backends["b"].in_flight = 1, 5
    assert picked(backends, "m", 4) == {"b": 4}


def test_the_limit_over_all() -> None:
    backends = two(max_concurrency=1)
    backends.take(backends["a"])
    assert picked(backends, "m") == {None: 1}
    backends.release(backends["a"])
    assert picked(backends, "m", 2).total() == 2


def test_a_session_stays_where_it_is_unless_that_one_is_full() -> None:
    backends = two()
    homes = {picked(backends, "m", 5, session=s).most_common()[0] for s in range(40)}
    assert homes == {("a", 5), ("b", 5)}
    home = next(iter(picked(backends, "m", session=7)))
    assert home is not None
    backends[home].in_flight = 200
    assert picked(backends, "m", 3, session=7) == {home: 3}
    backends[home].max_concurrency = 200
    assert home not in picked(backends, "m", 3, session=7)


def test_a_prefix_goes_home() -> None:
    backends = two(policy="prefix_hash")
    assert backends.by_prefix and not two().by_prefix
    assert {picked(backends, "m", 5, key=k).most_common()[0] for k in range(40)} == {("a", 5), ("b", 5)}


def test_another_after_a_failure_is_the_least_busy_of_the_others() -> None:
    backends = Backends([Backend(n, "h", 1, state="up") for n in "abc"])
    backends["b"].in_flight = backends["b"].max_concurrency = 1
    backends["c"].in_flight = 3
    way = backends.ways("any", None)[0]
    another = backends.another(way, [backends["a"]])
    assert another is backends["b"], "that it is full does not count"
    assert backends.another(way, [backends["a"], backends["b"]]) is backends["c"]
    assert backends.another(way, list(backends)) is None


# ---- states


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("up", "up"), "ab"),
        (("up", "failing"), "a"),
        (("failing", "failing"), "ab"),
        (("failing", "down"), "a"),
        (("unknown", "failing"), "a"),
        (("up", "trial"), "ab"),
        (("failing", "trial"), "b"),
    ],
)
def test_the_good_ones_first_the_failing_rather_than_nobody(states: tuple[State, State], expected: str) -> None:
    backends = two()
    for name, state in zip("ab", states, strict=True):
        backends.set_state(name, state, "", 0.0)
    assert "".join(serving(backends, "m")) == expected


def test_on_trial_it_gets_one_request_at_a_time() -> None:
    backends = two()
    backends.set_state("b", "trial", "", 0.0)
    backends.take(backends["b"])
    assert serving(backends, "m") == ["a"]
    backends.release(backends["b"])
    assert serving(backends, "m") == ["a", "b"]
    backends.take(backends["b"])
    backends.set_state("b", "up", "", 0.0)
    assert serving(backends, "m") == ["a", "b"]


def test_a_state_change_is_told_once() -> None:
    backends = two()
    told: list[tuple[str, State]] = []
    backends.changed.append(lambda b: told.append((b.name, b.state)))
    assert backends.set_state("a", "down", "x", 5.0) is True
    assert backends.set_state("a", "down", "y", 6.0) is False
    assert backends["a"].changed_at == 5.0 and backends["a"].reason == "y"
    assert told == [("a", "down")]


def test_one_that_somebody_can_start_is_worth_waiting_for() -> None:
    backends = two(fallbacks={"only-a": ["m"]})
    backends.set_state("a", "stopped", "", 0.0)
    with_fallback = backends.ways("any", "only-a")
    assert [w.members for w in with_fallback] == [(backends["b"],)], "nobody starts it: the fallback serves"
    backends["a"].starts_within_s = 60.0
    backends.set_state("a", "down", "", 0.0)
    backends.set_state("a", "stopped", "", 0.0)
    (way,) = backends.ways("any", "only-a")
    assert way.members == () and way.startable == (backends["a"],) and backends.pick(way) is None


# ---- at run time


def test_added_and_removed_at_run_time() -> None:
    backends = two()
    told: list[tuple[str, bool]] = []
    backends.changed.append(lambda b: told.append((b.name, b.removed)))
    backends.add(Backend("c", "h", 3, models=("m",), state="up"))
    assert serving(backends, "m") == ["a", "b", "c"] and "c" in backends and len(backends) == 3
    with pytest.raises(ValueError, match="c already"):
        backends.add(Backend("c", "h", 4))
    gone = backends.remove("a")
    assert serving(backends, "m") == ["b", "c"] and gone.removed and "a" not in backends
    with pytest.raises(KeyError):
        backends.remove("a")
    assert told == [("c", False), ("a", True)]


def test_draining() -> None:
    backends = two()
    idle: list[str] = []
    backends.take(backends["a"])
    backends.take(backends["a"])
    backends.drain("a")
    assert serving(backends, "m") == ["b"]
    with pytest.raises(NoHealthyBackend):
        backends.ways("any", "only-a")
    backends.when_idle(backends["a"], lambda: idle.append("a"))
    backends.release(backends["a"])
    assert idle == []
    backends.release(backends["a"])
    assert idle == ["a"]
    backends.when_idle(backends["a"], lambda: idle.append("at once"))
    assert idle == ["a", "at once"]
    backends.drain("a", on=False)
    assert serving(backends, "only-a") == ["a"]


def test_those_who_wait_are_told_of_room() -> None:
    backends = two()
    calls: list[None] = []
    backends.shared.freed.append(lambda: calls.append(None))
    backends.take(backends["a"])
    backends.release(backends["a"])
    backends.set_state("a", "down", "", 0.0)
    backends.set_models("b", ({"id": "x"},), ("x",))
    backends.add(Backend("c", "h", 3))
    assert len(calls) == 4


# ---- for those who ask


def test_models_are_a_union_of_healthy_backends() -> None:
    backends = two()
    backends["a"].model_cards = ({"id": "m", "max_model_len": 1}, {"id": "only-a"})
    backends["b"].model_cards = ({"id": "m", "max_model_len": 2},)
    assert [card["id"] for card in backends.models()] == ["m", "only-a"]
    backends.set_state("a", "down", "", 0.0)
    assert backends.models() == [{"id": "m", "max_model_len": 2}] and backends.models("ollama") == []


def test_url_key_and_target() -> None:
    backend = Backend("a", "::1", 8000, tls=True, api_key="secret")
    assert backend.url == "https://[::1]:8000"
    assert "secret" not in repr(backend)
    assert (backend.target.host, backend.target.host_header, backend.target.tls) == ("::1", b"[::1]:8000", True)
    assert backend.target.headers == ((b"authorization", b"Bearer secret"),) and Backend("b", "h", 1).target.headers == ()


def test_what_is_told_of_one() -> None:
    backend = Backend(
        "a", "h", 8081, models=("x",), state="failing", reason="reset", in_flight=2, max_concurrency=8, api_key="sk"
    )
    told = {
        "name": "a",
        "url": "http://h:8081",
        "state": "failing",
        "reason": "reset",
        "kind": "openai",
        "draining": False,
        "in_flight": 2,
        "max_concurrency": 8,
        "models": ["x"],
    }
    assert backend.facts() == told
    assert Backend("a", "h", 8081, models=("x",), fixed_models=("y",)).facts()["models"] == ["y"]
    assert Backend("a", "h", 8081).facts()["models"] == []


def test_whether_it_matters_which_model_is_asked_for() -> None:
    def backends(*models: tuple[str, ...] | None) -> Backends:
        return Backends(Backend(str(i), "h", i, models=names) for i, names in enumerate(models))

    assert backends(("m", "n")).one_model() and backends(None).one_model() and backends(("m",), ("m",)).one_model()
    assert not backends(("m",), ("n",)).one_model()
    assert not backends(("m", "n"), ("m", "n")).one_model()
    assert not backends(None, ("m",)).one_model() and not backends(None, None).one_model()
