"""Which requirements of a package are not met in this environment."""

from __future__ import annotations

from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import newest


def test_the_promised_range_is_mitmproxy_12() -> None:
    wanted = newest.promised()
    assert wanted.specifier.contains("12.2.0") and wanted.specifier.contains("12.99") and not wanted.specifier.contains("13.0")


def test_what_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest_version = metadata.version("pytest")
    requires = [
        f"pytest=={pytest_version}",
        "pytest<1",
        "never-heard-of-it>=1",
        'never-heard-of-it>=1; python_version < "3"',
        'never-heard-of-it>=1; extra == "more"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    assert newest.unfit("x") == [Requirement("pytest<1"), Requirement("never-heard-of-it>=1")]
    monkeypatch.setattr(metadata, "requires", lambda name: None)
    assert newest.unfit("x") == []


def test_this_environment_has_what_its_mitmproxy_needs() -> None:
    assert Version(metadata.version("mitmproxy")) in newest.promised().specifier
