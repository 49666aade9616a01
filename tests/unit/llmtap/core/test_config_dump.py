"""The configuration as shown: complete, plain, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtap.core.config import Config
from llmtap.core.config_dump import MASK, masked, show_path, without_password
from llmtap.core.config_load import load


def test_the_defaults_come_back(tmp_path: Path) -> None:
    shown = masked(Config())
    path = tmp_path / "f.yaml"
    path.write_text(json.dumps(shown))
    assert load(path, {}, {}) == Config()
    assert list(shown) == list(Config.model_fields)
    assert shown["logging"] == {"level": "INFO", "json": True, "request_log": True, "prompts": False}
    assert shown["capture"]["dir"] == "./llmtap-data"


def test_secrets_are_masked() -> None:
    config = Config.model_validate(
        {
            "backends": [
                {
                    "name": "a",
                    "api_key": "sk-hidden",
                    "launch": {
                        "model": "m",
                        "env": {"HF_TOKEN": "hidden", "AWS_SECRET_ACCESS_KEY": "hidden", "CUDA_VISIBLE_DEVICES": "0"},
                        "args": {"hf-token": "hidden", "max-num-batched-tokens": 512, "x": {"api_key": "hidden"}, "token": None},
                    },
                },
                {"name": "b", "url": "http://h:1"},
            ],
            "auth": {"keys": [{"name": "k", "key_sha256": "ab" * 32}]},
            "rate_limit": {"storage": "redis://u:hidden@h:1/0"},
            "prices": [{"model": "m", "gpu_hour_usd": 2.0, "valid_from": "2026-01-31"}],
        }
    )
    shown = masked(config)
    assert "hidden" not in json.dumps(shown) and "abab" not in json.dumps(shown)
    launch = shown["backends"][0]["launch"]
    assert launch["env"] == {"HF_TOKEN": MASK, "AWS_SECRET_ACCESS_KEY": MASK, "CUDA_VISIBLE_DEVICES": "0"}
    assert launch["args"] == {"hf-token": MASK, "max-num-batched-tokens": 512, "x": {"api_key": MASK}, "token": None}
    assert shown["backends"][0]["api_key"] == MASK and shown["backends"][1]["api_key"] is None
    assert shown["backends"][1]["url"] == "http://h:1"
    assert shown["rate_limit"]["storage"] == f"redis://u:{MASK}@h:1/0"
    assert shown["prices"][0] | {"x": 0} == {
        "model": "m",
        "provider": None,
        "valid_from": "2026-01-31",
        "input_usd_per_million": None,
        "output_usd_per_million": None,
        "cached_usd_per_million": None,
        "gpu_hour_usd": 2,
        "x": 0,
    }


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h", f"redis://:{MASK}@h"),
        ("redis://h/0?password=pw", f"redis://h/0?{MASK}"),
        ("redis://u:p@w@h", f"redis://u:{MASK}@h"),
        ("redis://[x", MASK),
    ],
)
def test_passwords_in_urls(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_relative_paths_show_that_they_are() -> None:
    assert [show_path(Path(p)) for p in ("data", "./data", "../data", "/data", ".")] == [
        "./data",
        "./data",
        "../data",
        "/data",
        ".",
    ]
