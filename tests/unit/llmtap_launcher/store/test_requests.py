"""Asking the writer: each question is answered once, nonsense is thrown away."""

from __future__ import annotations

from pathlib import Path

from llmtap_launcher.store.options import Retention
from llmtap_launcher.store.prune import Pruned
from llmtap_launcher.store.requests import Requests

KEEP = Retention(1, 2.5, None, 5)


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    asked: list[Retention] = []

    def prune(retention: Retention) -> Pruned:
        asked.append(retention)
        return Pruned(exchanges=7)

    here, there = Requests(tmp_path), Requests(tmp_path)
    assert there.serve(prune) == 0
    here.ask("p", KEEP)
    assert here.answer("p") is None
    assert there.serve(prune) == 1
    assert asked == [KEEP]
    answer = here.answer("p")
    assert answer is not None
    assert Pruned(**answer) == Pruned(exchanges=7)
    assert (here.answer("p"), there.serve(prune)) == (None, 0)
    assert list(here.folder.iterdir()) == []


def test_a_question_taken_back(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    requests.ask("p", KEEP)
    assert requests.withdraw("p")
    assert not requests.withdraw("p")
    assert requests.serve(lambda _: Pruned()) == 0


def test_nonsense_goes(tmp_path: Path) -> None:
    requests = Requests(tmp_path)
    requests.folder.mkdir()
    for name, content in (("a.json", b"{"), ("b.json", b'{"prune": {"odd": 1}}'), ("c.json", b"[]")):
        (requests.folder / name).write_bytes(content)
    assert requests.serve(lambda _: Pruned()) == 3
    assert list(requests.folder.iterdir()) == []
    (requests.folder / "d.done.json").write_bytes(b"{")
    assert requests.answer("d") is None
