"""Bodies come in batches, remembered ones without asking again."""

from __future__ import annotations

from contextlib import closing

import demo

from llmtap_launcher.export import stored
from llmtap_launcher.export.stored import Bodies, as_message, role_of, rows
from llmtap_launcher.store.database import connect_ro
from support.captures import WEATHER_TOOL, Captures

PNG = demo.picture(1)


def test_messages_whole_and_with_references(captures: Captures) -> None:
    parts = [{"type": "image_url", "image_url": {"url": PNG}}]
    captures.exchange([{"role": "user", "content": parts}], "a picture", asked={"tools": [WEATHER_TOOL]})
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        ids = [row[0] for row in conn.execute("SELECT id FROM bodies WHERE role <> 'tools' ORDER BY id")]
        found = Bodies(conn, whole=True).load(ids)
        assert [as_message(found[ident])["content"] for ident in ids] == [parts, "a picture"]
        assert [role_of(found[ident]) for ident in ids] == ["user", "assistant"] and role_of(None) is None
        reference = as_message(Bodies(conn).load(ids)[ids[0]])["content"][0]["image_url"]["url"]
        assert reference.startswith("attachment:")
        assert 999 not in Bodies(conn).load([*ids, 999])


def test_definitions_of_tools_are_no_messages(captures: Captures) -> None:
    for number in range(12):
        tool = {"type": "function", "function": {"name": f"f{number}"}}
        captures.exchange([{"role": "user", "content": f"q{number}"}], "yes", asked={"tools": [tool]})
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        ids = [row[0] for row in conn.execute("SELECT id FROM bodies WHERE role <> 'tools' ORDER BY id")]
        found = Bodies(conn).load(ids)
        assert set(found) == set(ids)


def test_old_ones_are_forgotten(captures: Captures) -> None:
    for number in range(30):
        captures.exchange([{"role": "user", "content": f"{number} " + "x" * 500}], "yes")
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        ids = [row[0] for row in conn.execute("SELECT id FROM bodies ORDER BY id")]
        before, stored._KEPT_CHARS = stored._KEPT_CHARS, 2000
        try:
            bodies = Bodies(conn)
            for ident in ids:
                assert bodies.load([ident, ids[0]])[ident]
            assert len(bodies._young) + len(bodies._old) < 20
            assert ids[0] in bodies._young
        finally:
            stored._KEPT_CHARS = before


def test_rows_far_apart_are_asked_for_by_name(captures: Captures) -> None:
    for number in range(40):
        captures.exchange([{"role": "user", "content": f"q{number}"}], "yes")
    captures.store()
    with closing(connect_ro(captures.db)) as conn:
        assert [row[0] for row in rows(conn, "id", "exchanges", "id", list(range(1, 41, 4)))] == list(range(1, 41, 4))
        assert [row[0] for row in rows(conn, "id", "exchanges", "id", list(range(1, 41)))] == list(range(1, 41))
