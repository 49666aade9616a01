"""Asking the writer: each question is answered once, nonsense is thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtap_launcher.store.requests import Requests

KEEP = {"days": 2.5, "why": None}


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def prune(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        return {"exchanges": 7}

    here, there = Requests(tmp_path), Requests(tmp_path)
    assert there.serve({"prune": prune}) == 0
    here.ask("p", "prune", KEEP)
    assert here.answer("p") is None
    assert there.serve({"prune": prune}) == 1
    assert asked == [KEEP]
    assert here.answer("p") == {"exchanges": 7}
    assert (here.answer("p"), there.serve({"prune": prune})) == (None, 0)
    assert list(here.folder.iterdir()) == []


def test_a_question_taken_back(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    requests.ask("p", "prune", KEEP)
    assert requests.withdraw("p")
    assert not requests.withdraw("p")
    assert requests.serve({}) == 0


def test_nonsense_goes(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    requests.folder.mkdir()
    for name, content in (("a.json", b"{"), ("b.json", b'{"prune": {"odd": 1}}'), ("c.json", b"[]"), ("d.json", b'{"x": {}}')):
        (requests.folder / name).write_bytes(content)
    assert requests.serve({"prune": lambda question: {"days": question["days"]}}) == 4
    assert list(requests.folder.iterdir()) == []
    (requests.folder / "e.done.json").write_bytes(b"{")
    assert requests.answer("e") is None
