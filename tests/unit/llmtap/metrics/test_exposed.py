"""What the endpoints are told."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llmtap.metrics import families as f
from llmtap.metrics.exposed import Exposed
from llmtap.metrics.workers import Share
from llmtap.policy.backends import Backends


def made(count: int) -> f.Families:
    families = f.Families()
    families.add(f.Counter("c", "C.")).inc(count)
    return families


async def test_both_formats_and_plain_data() -> None:
    exposed = Exposed(made(3), Backends([]))
    kind, body = await exposed.text("")
    assert kind.startswith("text/plain; version=0.0.4")
    assert {m.name: m.samples[0].value for m in text_string_to_metric_families(body.decode())}["c"] == 3
    kind, body = await exposed.text("application/openmetrics-text")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert [m.name for m in parse_openmetrics(body.decode())] == ["c"]
    assert (await exposed.plain())["c"]["samples"] == [{"name": "c_total", "labels": {}, "value": 3}]


async def test_one_of_several_answers_for_all(tmp_path: Path) -> None:
    share, other = Share(made(3), tmp_path, "a"), Share(made(4), tmp_path, "b")
    plain = await Exposed(made(3), Backends([]), share).plain()
    assert plain["c"]["samples"][0]["value"] == 7
    share.stop()
    other.stop()


async def test_what_processes_say_of_themselves(tmp_path: Path) -> None:
    share, other = Share(made(3), tmp_path, "a"), Share(made(4), tmp_path, "b")
    alone, one = Exposed(made(3), Backends([])), Exposed(made(3), Backends([]), share)
    for exposed in (alone, one):
        exposed.tell(lambda: {"pid": 1})
    assert (await alone.told(), await one.told()) == ([{"pid": 1}], [{"pid": 1}])
    assert share.facts() == {"pid": 1}
    share.stop()
    other.stop()


async def test_the_backends_page() -> None:
    kind, body = await Exposed(made(1), Backends([])).backends()
    assert kind.startswith("text/plain") and b"llmtap_backend_scrape_up" in body
