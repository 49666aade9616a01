"""A changed file while `llmtap up` runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtap.core import config_load
from llmtap.core.config import Config
from llmtap_launcher.reconfigure import Source, reconfigure


class Desk:
    def __init__(self, folder: Path) -> None:
        self.file, self.effective = folder / "llmtap.yaml", folder / "gateway.yaml"
        self.log: list[str] = []
        self.write("a")
        self.running = self.load()
        self.source = Source(self.file, self.running, self.load)

    def write(self, name: str, more: str = "") -> None:
        self.file.write_text(f"auth: {{enabled: true, keys: [{{name: {name}, key: secret-{name}}}]}}\n{more}")

    def load(self) -> Config:
        return config_load.load(self.file, {}, {})

    def changed(self) -> None:
        reconfigure(self.source, self.running, self.effective, lambda name, line: self.log.append(line))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_new_keys_reach_the_gateways_file(desk: Desk) -> None:
    desk.write("b")
    desk.changed()
    assert [key.name for key in config_load.load(desk.effective, {}, {}).auth.keys] == ["b"]
    assert desk.effective.stat().st_mode & 0o077 == 0
    assert desk.log == []


def test_what_has_to_wait_is_named_and_not_written(desk: Desk) -> None:
    desk.write("b", "timeouts: {idle_s: 7}\n")
    desk.changed()
    assert desk.log == ["the configuration has changed; waits for a restart: timeouts"]
    assert config_load.load(desk.effective, {}, {}).timeouts.idle_s == 600


def test_a_wrong_file_changes_nothing(desk: Desk) -> None:
    desk.file.write_text("auth: {enabled: perhaps}\n")
    desk.changed()
    assert not desk.effective.exists() and "the changed configuration is not used" in desk.log[0]
