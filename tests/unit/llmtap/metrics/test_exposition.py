"""Reading other servers' metrics, whatever they are."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from llmtap.metrics.exposition import MAX_LINE, MAX_SAMPLES, escaped, merge, parse

SCRAPE = (Path(__file__).parents[4] / "fixtures" / "metrics" / "vllm-0.33.0.prom").read_text()


def page(**texts: str) -> str:
    return "\n".join(merge({name: parse(text) for name, text in texts.items()}, "backend")) + "\n"


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def test_a_real_scrape_comes_through_whole() -> None:
    parsed = parse(SCRAPE)
    assert parsed.bad_lines == 0
    before, after = samples(SCRAPE), samples(page(a=SCRAPE))
    assert {(name, tuple(p for p in labels if p != ("backend", "a"))): v for (name, labels), v in after.items()} == before
    types = {f.name: f.type for f in text_string_to_metric_families(SCRAPE)}
    assert {f.name: f.type for f in text_string_to_metric_families(page(a=SCRAPE))} == types


def test_two_backends_share_a_family() -> None:
    text = page(a="# HELP x X.\n# TYPE x counter\nx 1\n", b="# TYPE x counter\nx 2\n")
    assert text.splitlines() == ["# HELP x X.", "# TYPE x counter", 'x{backend="a"} 1', 'x{backend="b"} 2']
    assert "# TYPE x untyped" in page(a="# TYPE x counter\nx 1", b="# TYPE x gauge\nx 2")


def test_a_label_of_that_name_is_kept_apart() -> None:
    assert page(a='x{backend="evil"} 1') == '# TYPE x untyped\nx{backend="a",exported_backend="evil"} 1\n'
    assert 'exported_exported_backend="1"' in page(a='x{backend="1",exported_backend="2"} 1')


def test_openmetrics_is_understood() -> None:
    text = '# TYPE x counter\n# UNIT x y\nx_total{a="}"} 1.0 123 # {trace="1"} 1.0\nx_created 2\n# EOF\n'
    assert page(a=text).splitlines()[:2] == ["# TYPE x_total counter", 'x_total{backend="a",a="}"} 1.0']


def test_what_is_no_sample_is_left_out() -> None:
    bad = [
        "<html>",
        "x",
        "x one",
        "x 1_000",
        "x 1.2.3",
        'x{a="1"',
        'x{a="1" b="2"} 1',
        "x{a=1} 1",
        'x{a="\\x"} 1',
        'x{a="1",a="2"} 1',
        "x 1",
        "1x 1",
        "y" * (MAX_LINE + 1) + " 1",
    ]
    parsed = parse("x 1\n" + "\n".join(bad))
    assert [s for f in parsed.families.values() for s in f.samples] == [("x", (), "1")]
    assert parsed.bad_lines == len(bad)


def test_no_family_of_ours_can_be_forged() -> None:
    assert merge({"a": parse("up 1\nother 2")}, "backend", reserved=["up"]) == ["# TYPE other untyped", 'other{backend="a"} 2']


def test_a_backends_name_cannot_break_out() -> None:
    assert escaped('a"\n\\') == 'a\\"\\n\\\\'


def test_too_much_is_cut() -> None:
    parsed = parse("\n".join(f"x{n} 1" for n in range(MAX_SAMPLES + 10)))
    assert len(parsed.families) == MAX_SAMPLES and parsed.bad_lines == 10


@given(st.text(alphabet='x{}=",\\ \n#TYPEcounter1.e+-_', max_size=200) | st.text(max_size=100))
def test_anything_gives_a_page_that_parses(text: str) -> None:
    list(text_string_to_metric_families(page(a=text, b=text)))


def test_hostile_lines_take_linear_time() -> None:
    for line in ('x{a="' + "\\" * 15_000, "x{" + 'a="",' * 3_000, "x" + " " * 15_000, 'x{a="1"' + " " * 15_000):
        started = time.process_time()
        parse("\n".join([line] * 50))
        assert time.process_time() - started < 5
