"""docs/policy.md: every piece of configuration on it is valid, and its rule in Python works."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from llmtap.core.config import Config
from llmtap.core.errors import Forbidden
from llmtap.filters import load_rule

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
#: but for the scrape configuration of Prometheus
INLINE = [text for text in re.findall(r"`([a-z_.]+: [{\[][^`]*)`", PAGE) if not text.startswith("authorization:")]


def section(text: str) -> dict[str, object]:
    """A piece of the page as configuration; digests that it leaves out are made up, each another."""
    numbers = iter(range(1, 99))
    return dict(yaml.safe_load(re.sub("…", lambda _: f"{next(numbers):064x}", text)))


@pytest.mark.parametrize("text", BLOCKS)
def test_blocks(text: str) -> None:
    Config.model_validate(section(text))


@pytest.mark.parametrize("text", INLINE)
def test_what_stands_in_a_line(text: str) -> None:
    key, _, value = text.partition(": ")
    tree: object = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        tree = {part: tree}
    Config.model_validate(tree)


def test_all_features_are_there() -> None:
    assert len(BLOCKS) >= 5 and len(INLINE) >= 3
    for name in ("auth", "rate_limit", "cache", "single_flight", "batching", "filters", "budget_usd", "cors_origins"):
        assert name in PAGE


def test_the_rule(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "rules.py").write_text(code)
    rule = load_rule(f"{tmp_path / 'rules.py'}:check", "filters[0].python")

    def call(request: dict[str, object], key: str | None) -> object:
        made = rule(request, SimpleNamespace(key=key))
        return asyncio.run(made) if inspect.iscoroutine(made) else made

    assert call({"model": "m"}, None) == {"model": "m", "seed": 7}
    with pytest.raises(Forbidden):
        call({"model": "m", "n": 5}, "intern")
