"""From the configuration: 0 means for ever, and a folder alone keeps everything."""

from __future__ import annotations

from llmtap.core.config import Config
from llmtap_launcher.store.options import Options, Retention, from_config


def test_the_defaults() -> None:
    assert from_config(Config()) == Options(retention=Retention(30, 30, 30, 50_000_000_000), archive_days=3)
    assert Options().retention.nothing
    assert not Options().archive_days


def test_for_ever() -> None:
    config = Config.model_validate(
        {
            "store": {"retain_days": 0, "retain_bodies_days": 7, "retain_timings_days": 0, "max_gb": 0, "archive_days": 0},
            "backends": [{"name": "a", "url": "http://127.0.0.1:1"}],
            "prices": [{"model": "*", "input_usd_per_million": 1, "output_usd_per_million": 2}],
        }
    )
    options = from_config(config)
    assert options.retention == Retention(None, 7, None, None)
    assert (options.urls, options.archive_days) == ({"a": "http://127.0.0.1:1"}, 0)
    assert options.rates[0].out_nano == 2_000_000_000
