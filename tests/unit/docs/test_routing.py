"""What the page on routing shows is true: its configurations load, its numbers are those of the simulation and the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from llmtap.core.config_load import load
from llmtap.core.endpoints import ENDPOINTS
from llmtap.health import BURST, MISSES
from llmtap.policy.backends import State
from llmtap.policy.balancing import POLICIES

PAGE = (Path(__file__).parents[3] / "docs" / "routing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_its_configurations_load(block: str, tmp_path: Path) -> None:
    path = tmp_path / "llmtap.yaml"
    path.write_text(block)
    load(path, {}, {})


def test_its_tables_are_complete() -> None:
    for name in [*POLICIES, *(s for s in get_args(State) if s != "stopped")]:
        assert f"| `{name}`" in PAGE
    for path, endpoint in ENDPOINTS.items():
        if endpoint.kind != "openai":
            assert f"`{path}`" in PAGE, path


def test_its_numbers() -> None:
    assert (BURST, MISSES) == (5, 3) and "five requests in a row" in PAGE and "three in a row are missed" in PAGE
