"""Arguments, variables, defaults; wrong ones in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtap.middleware.settings import settings


def test_defaults() -> None:
    found = settings(env={})
    assert (found.base_url, found.backend) == ("http://localhost:8081/v1", "localhost:8081")
    assert (found.log_dir, found.segment_bytes, found.timeout, found.retries) == (Path("logs/vllm"), 100_000_000, 600.0, 2)
    assert found.headers == {}


def test_variables_and_arguments() -> None:
    env = {
        "VLLM_BASE_URL": "https://u:p@gpu.example/x/v1/",
        "VLLM_LOG_DIR": "/tmp/l",
        "VLLM_MAX_LOG_SIZE_MB": "0.5",
        "VLLM_API_KEY": "k",
    }
    found = settings(env=env)
    assert (found.base_url, found.backend) == ("https://u:p@gpu.example/x/v1", "gpu.example")
    assert (found.log_dir, found.segment_bytes, found.headers) == (Path("/tmp/l"), 500_000, {"authorization": "Bearer k"})
    told = settings("http://127.0.0.1:9", "d", False, max_log_size_mb=2, timeout=None, api_key="q", headers={"x": "y"}, env=env)
    assert (told.base_url, told.log_dir, told.segment_bytes, told.timeout) == ("http://127.0.0.1:9/v1", None, 2_000_000, None)
    assert told.headers == {"authorization": "Bearer q", "x": "y"}


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"base_url": "localhost:8081"}, "base_url"),
        ({"base_url": "http://h:x/v1"}, "base_url"),
        ({"base_url": "http://h/v1?a=1"}, "base_url"),
        ({"log_format": "xml"}, "log_format"),
        ({"max_log_size_mb": 0}, "max_log_size_mb"),
        ({"env": {"VLLM_MAX_LOG_SIZE_MB": "big"}}, "VLLM_MAX_LOG_SIZE_MB"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_what_is_wrong(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        settings(**{"env": {}, **wrong})
    assert "\n" not in str(caught.value)
