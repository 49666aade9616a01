"""The schema: the contract's columns, the indexes that queries depend on, search that follows its table, the view."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from llmtap_launcher.store.database import open_writer
from llmtap_launcher.store.migrations import migrations

#: the names users' queries depend on
EXCHANGES = """id uid started_at started_us worker key_name client_ip user_agent session_hint tags metadata_json
method path endpoint model_requested model_response backend attempts stream cache
status outcome error_type error_message finish_reason response_id
temperature top_p max_tokens seed n prompt_tokens completion_tokens cached_tokens reasoning_tokens usage_source
queue_ms ttft_ms duration_ms overhead_ms itl_p50_ms itl_p95_ms itl_max_ms tokens_per_second
chunks request_bytes response_bytes cost_nanousd price_id
n_messages conversation_id input_tip output_tip tools_hash params_json response_meta_json""".split()


def columns(conn: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in conn.execute(f"PRAGMA table_info({table})")]


def test_the_fixed_names(conn: sqlite3.Connection) -> None:
    assert columns(conn, "exchanges")[: len(EXCHANGES)] == EXCHANGES
    assert columns(conn, "messages") == ["id", "hash", "parent_id", "depth", "body_id"]
    assert columns(conn, "bodies") == ["id", "hash", "role", "text", "json", "bytes"]
    assert columns(conn, "token_timings") == ["exchange_id", "deltas"]
    assert columns(conn, "attachments") == ["hash", "mime", "bytes", "content"]
    assert columns(conn, "latency_hist") == ["hour", "model", "key_name", "metric", "bucket", "n"]
    assert columns(conn, "usage_daily") == (
        "day key_name model backend requests errors prompt_tokens completion_tokens cached_tokens cost_nanousd".split()
    )
    assert columns(conn, "conversations") == "id root_hash tip first_at last_at n key_name model title".split()
    assert columns(conn, "ratings")[:7] == "exchange_id name value string_value source comment at".split()
    assert columns(conn, "prices") == "id provider model_glob valid_from in_nano out_nano cached_nano gpu_hour_nano".split()
    assert columns(conn, "exports") == "id at format sql rows sha256 manifest_json".split()
    assert columns(conn, "segments") == ["name", "worker", "ingested_to", "records", "bad", "finished_at"]


def test_applying_twice_changes_nothing(conn: sqlite3.Connection) -> None:
    before = conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    migrations.apply(Database(conn))
    assert conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall() == before


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        ("SELECT * FROM messages WHERE parent_id = 1", "messages_parent"),
        ("SELECT * FROM exchanges WHERE started_at > '2026'", "exchanges_started"),
        ("SELECT * FROM exchanges WHERE model_requested = 'm' ORDER BY started_at", "exchanges_model"),
        ("SELECT * FROM exchanges WHERE key_name = 'k' ORDER BY started_at", "exchanges_key"),
        ("SELECT * FROM exchanges WHERE conversation_id = 1 ORDER BY id", "exchanges_conversation"),
        ("SELECT * FROM exchanges ORDER BY duration_ms DESC", "exchanges_duration"),
        ("SELECT * FROM exchanges WHERE input_tip = x'00'", "exchanges_input_tip"),
        ("SELECT * FROM exchanges WHERE output_tip = x'00'", "exchanges_output_tip"),
        ("SELECT * FROM exchanges WHERE status >= 400 OR outcome <> 'ok' ORDER BY started_at DESC", "exchanges_failed"),
        ("SELECT * FROM exchanges WHERE output_tip = x'00' AND started_us < 5 ORDER BY started_us DESC", "exchanges_output_tip"),
        (
            "SELECT count(*) FROM (SELECT * FROM requests) GROUP BY model, key_name, status, finish_reason, outcome",
            "COVERING INDEX exchanges_counts",
        ),
        ("SELECT * FROM requests WHERE status = 200 ORDER BY started_at DESC LIMIT 50", "exchanges_started"),
        ("SELECT * FROM requests WHERE model = 'm' ORDER BY started_at DESC LIMIT 50", "exchanges_served"),
        ("SELECT * FROM exchanges WHERE tools_hash = x'00'", "exchanges_tools"),
        ("SELECT * FROM exchanges WHERE response_id = 'r' AND endpoint = 'responses'", "exchanges_response"),
        ("SELECT * FROM conversations ORDER BY last_at DESC LIMIT 50", "conversations_last"),
        ("SELECT * FROM ratings WHERE exchange_id = 1", "ratings_exchange"),
        ("SELECT DISTINCT boot FROM exchanges WHERE outcome = 'open'", "exchanges_open"),
        ("SELECT * FROM exchanges WHERE request_id = 'x'", "exchanges_request_id"),
        ("SELECT * FROM requests ORDER BY started_at DESC LIMIT 50", "exchanges_started"),
    ],
)
def test_queries_use_their_index(conn: sqlite3.Connection, sql: str, index: str) -> None:
    plan = " ".join(row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}"))
    assert index.startswith("COVERING") or f"INDEX {index}" in plan
    assert index.removeprefix("COVERING INDEX ") in plan


def test_search_follows_the_texts(conn: sqlite3.Connection) -> None:
    def found(word: str) -> list[int]:
        return [row[0] for row in conn.execute("SELECT rowid FROM bodies_fts WHERE bodies_fts MATCH ?", (word,))]

    conn.execute("INSERT INTO bodies VALUES (1, x'01', 'user', 'Crème brûlée', NULL, 1), (2, x'02', 'tools', NULL, '[]', 1)")
    assert found("creme") == [1]
    conn.execute("UPDATE bodies SET text = 'soup' WHERE id = 1")
    conn.execute("UPDATE bodies SET text = 'now with text' WHERE id = 2")
    assert (found("creme"), found("soup"), found("now")) == ([], [1], [2])
    conn.execute("UPDATE bodies SET text = NULL WHERE id = 2")
    conn.execute("DELETE FROM bodies WHERE id = 1")
    assert (found("soup"), found("now")) == ([], [])
    conn.execute("INSERT INTO bodies_fts(bodies_fts, rank) VALUES ('integrity-check', 1)")


def test_the_view_shows_the_last_user_and_the_reply(conn: sqlite3.Connection) -> None:
    conn.execute(
        "INSERT INTO bodies(id, hash, role, text, json, bytes) VALUES (1, x'01', 'user', 'first', NULL, 1), "
        "(2, x'02', 'user', ?, NULL, 1), (3, x'03', 'tool', 'rain', NULL, 1), (4, x'04', 'assistant', 'wet', NULL, 1), "
        '(5, x\'05\', \'assistant\', NULL, \'{"tool_calls":[{"function":{"name":"f"}},{"function":{"name":"g"}},{}]}\', 1)',
        ("a\r\nb" + "x" * 500,),
    )
    conn.execute(
        "INSERT INTO messages(id, hash, parent_id, depth, body_id) VALUES (1, x'11', NULL, 0, 1), (2, x'12', 1, 1, 2), "
        "(3, x'13', 2, 2, 3), (4, x'14', 3, 3, 4), (5, x'15', 3, 3, 5)"
    )
    conn.execute(
        "INSERT INTO exchanges(uid, outcome, input_tip, output_tip, model_requested, model_response) VALUES "
        "('u1', 'ok', x'13', x'14', 'asked', NULL), ('u2', 'ok', x'13', x'15', 'asked', 'served'), "
        "('u3', 'open', NULL, NULL, NULL, NULL)"
    )
    rows = conn.execute("SELECT uid, prompt, reply, model FROM requests ORDER BY id").fetchall()
    assert rows[0] == ("u1", "a  b" + "x" * 196, "wet", "asked")
    assert rows[1][2:] == ("→ f, g, tool", "served")
    assert rows[2] == ("u3", None, None, None)


# databases of earlier versions

OLD = sorted((Path(__file__).parents[4] / "fixtures" / "databases").glob("*.db.gz"))


@pytest.mark.parametrize("packed", OLD, ids=lambda path: path.name)
def test_an_old_database_is_brought_up_to_date(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    with closing(sqlite3.connect(path)) as before:
        rows = before.execute("SELECT uid, outcome, input_tip, output_tip FROM exchanges ORDER BY id").fetchall()
    with closing(open_writer(path)) as conn:
        assert conn.execute("SELECT uid, outcome, input_tip, output_tip FROM exchanges ORDER BY id").fetchall() == rows
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        conn.execute("INSERT INTO bodies_fts(bodies_fts, rank) VALUES ('integrity-check', 1)")
        # as if the writer of today had stored it
        turns = conn.execute("SELECT n, title FROM conversations ORDER BY n DESC").fetchall()
        assert turns[0][0] == 3
        assert turns[0][1].startswith("What is the weather in Paris")
        assert sum(n for n, _ in turns) == len(rows)
        (requests, errors) = conn.execute("SELECT sum(requests), sum(errors) FROM usage_daily").fetchone()
        assert requests == len(rows)
        assert errors == sum(outcome not in ("ok", "cached") for _, outcome, _, _ in rows)
        (gaps,) = conn.execute("SELECT sum(n) FROM latency_hist WHERE metric = 'itl_ms'").fetchone()
        expected = (
            "SELECT sum(json_array_length(deltas) - 1) FROM token_timings t JOIN exchanges e ON e.id = "
            "t.exchange_id WHERE outcome = 'ok'"
        )
        assert (gaps,) == conn.execute(expected).fetchone()
        fresh = {name for (name,) in conn.execute("SELECT name FROM sqlite_master")}
    with closing(open_writer(tmp_path / "new.db")) as new:
        assert {name for (name,) in new.execute("SELECT name FROM sqlite_master")} == fresh


def test_there_is_an_old_database() -> None:
    assert OLD


def test_spans_have_the_conventions_names(conn: sqlite3.Connection) -> None:
    conn.execute(
        "INSERT INTO exchanges(uid, outcome, endpoint, model_requested, started_us, duration_ms, conversation_id, "
        "finish_reason, ttft_ms) "
        "VALUES ('u1', 'ok', 'chat', 'm', 1000, 2.5, 7, 'stop', 250), ('u2', 'timeout', 'completions', 'm', 9000, "
        "NULL, 7, NULL, NULL)"
    )
    cursor = conn.execute("SELECT * FROM otel_spans ORDER BY span_id")
    names = [c[0] for c in cursor.description]
    first, second = (dict(zip(names, row, strict=True)) for row in cursor)
    assert (first["name"], first["trace_id"], first["gen_ai.operation.name"]) == ("chat m", "u1", "chat")
    assert (first["start_time_unix_nano"], first["end_time_unix_nano"]) == (1_000_000, 3_500_000)
    assert (first["gen_ai.response.finish_reasons"], first["gen_ai.server.time_to_first_token"]) == ('["stop"]', 0.25)
    assert (second["trace_id"], second["status_code"], second["error.type"]) == ("u1", "ERROR", "timeout")
    assert second["name"] == "text_completion m"
