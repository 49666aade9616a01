"""The schema of the capture database, as an ordered list of named changes (`sqlite_utils.Migrations`).

A change that has been released is never edited: databases in the field have run it. `schema.py` says what the columns
mean; `docs/schema.md` is printed from both.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("llmtap")

_TABLES = """
CREATE TABLE bodies (
  id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, role TEXT NOT NULL, text TEXT, json TEXT, bytes INTEGER NOT NULL
);
CREATE TABLE messages (
  id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, parent_id INTEGER REFERENCES messages(id),
  depth INTEGER NOT NULL, body_id INTEGER NOT NULL REFERENCES bodies(id)
);
CREATE INDEX messages_parent ON messages(parent_id);
CREATE INDEX messages_body ON messages(body_id);
CREATE TABLE exchanges (
  id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE,
  started_at TEXT, started_us INTEGER, worker TEXT, key_name TEXT, client_ip TEXT, user_agent TEXT, session_hint TEXT,
  tags TEXT, metadata_json TEXT,
  method TEXT, path TEXT, endpoint TEXT, model_requested TEXT, model_response TEXT, backend TEXT,
  attempts INTEGER, stream INTEGER, cache TEXT,
  status INTEGER, outcome TEXT NOT NULL,
  error_type TEXT, error_message TEXT, finish_reason TEXT, response_id TEXT,
  temperature REAL, top_p REAL, max_tokens INTEGER, seed INTEGER, n INTEGER,
  prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER, reasoning_tokens INTEGER, usage_source TEXT,
  queue_ms REAL, ttft_ms REAL, duration_ms REAL, overhead_ms REAL,
  itl_p50_ms REAL, itl_p95_ms REAL, itl_max_ms REAL, tokens_per_second REAL,
  chunks INTEGER, request_bytes INTEGER, response_bytes INTEGER, cost_nanousd INTEGER, price_id INTEGER,
  n_messages INTEGER, conversation_id INTEGER, input_tip BLOB, output_tip BLOB, tools_hash BLOB,
  params_json TEXT, response_meta_json TEXT,
  request_id TEXT, boot TEXT
);
CREATE INDEX exchanges_started ON exchanges(started_at);
CREATE INDEX exchanges_model ON exchanges(model_requested, started_at);
CREATE INDEX exchanges_key ON exchanges(key_name, started_at);
CREATE INDEX exchanges_conversation ON exchanges(conversation_id, id);
CREATE INDEX exchanges_duration ON exchanges(duration_ms);
CREATE INDEX exchanges_input_tip ON exchanges(input_tip);
CREATE INDEX exchanges_output_tip ON exchanges(output_tip);
CREATE INDEX exchanges_failed ON exchanges(started_at) WHERE status >= 400 OR outcome <> 'ok';
CREATE INDEX exchanges_open ON exchanges(boot) WHERE outcome = 'open';
CREATE INDEX exchanges_request_id ON exchanges(request_id) WHERE request_id IS NOT NULL;
CREATE TABLE token_timings (exchange_id INTEGER PRIMARY KEY REFERENCES exchanges(id), deltas TEXT NOT NULL);
CREATE TABLE segments (
  name TEXT PRIMARY KEY, worker TEXT NOT NULL, ingested_to INTEGER NOT NULL, records INTEGER NOT NULL, bad INTEGER NOT NULL,
  finished_at TEXT
);
"""

_SEARCH = (
    "CREATE VIRTUAL TABLE bodies_fts "
    "USING fts5(text, content='bodies', content_rowid='id', tokenize='unicode61 remove_diacritics 2')",
    # every row is in the index, also those without text: FTS5's own integrity check expects the two to match
    "CREATE TRIGGER bodies_fts_insert AFTER INSERT ON bodies BEGIN "
    "INSERT INTO bodies_fts(rowid, text) VALUES (new.id, new.text); END",
    "CREATE TRIGGER bodies_fts_delete AFTER DELETE ON bodies BEGIN "
    "INSERT INTO bodies_fts(bodies_fts, rowid, text) VALUES ('delete', old.id, old.text); END",
    "CREATE TRIGGER bodies_fts_update AFTER UPDATE OF text ON bodies BEGIN "
    "INSERT INTO bodies_fts(bodies_fts, rowid, text) VALUES ('delete', old.id, old.text); "
    "INSERT INTO bodies_fts(rowid, text) VALUES (new.id, new.text); END",
)

#: what a row of the landing page shows of a message
_SHORT = "trim(replace(replace(substr({}, 1, 200), char(10), ' '), char(13), ' '))"
#: a reply that only calls tools is shown by their names
_CALLED = (
    "'→ ' || (SELECT group_concat(coalesce(json_extract(c.value, '$.function.name'), 'tool'), ', ') "
    "FROM json_each(b.json, '$.tool_calls') c)"
)
_REQUESTS = f"""
CREATE VIEW requests AS
SELECT
  e.id, e.started_at, coalesce(e.model_response, e.model_requested) AS model, e.key_name, e.backend, e.endpoint, e.stream,
  e.status, e.outcome,
  (WITH RECURSIVE up(parent_id, body_id, steps) AS (
     SELECT m.parent_id, m.body_id, 1 FROM messages m WHERE m.hash = e.input_tip
     UNION ALL
     SELECT m.parent_id, m.body_id, up.steps + 1 FROM up JOIN messages m ON m.id = up.parent_id WHERE up.steps < 200
   )
   SELECT {_SHORT.format("b.text")} FROM up JOIN bodies b ON b.id = up.body_id WHERE b.role = 'user' LIMIT 1
  ) AS prompt,
  (SELECT {_SHORT.format(f"coalesce(b.text, {_CALLED})")}
   FROM messages m JOIN bodies b ON b.id = m.body_id WHERE m.hash = e.output_tip
  ) AS reply,
  e.prompt_tokens, e.completion_tokens, e.ttft_ms, e.duration_ms, e.tokens_per_second, e.finish_reason, e.uid
FROM exchanges e
"""


@migrations()
def m001_tables(db: Database) -> None:
    """Exchanges, the message chain, timings, segments."""
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)


@migrations()
def m002_search(db: Database) -> None:
    """Full text search over message texts, kept up to date by triggers."""
    for statement in _SEARCH:
        db.execute(statement)


_WEBSOCKETS = """
CREATE TABLE websocket_messages (
  exchange_id INTEGER NOT NULL REFERENCES exchanges(id), n INTEGER NOT NULL, at_ms REAL, from_client INTEGER NOT NULL,
  content, bytes INTEGER NOT NULL, PRIMARY KEY (exchange_id, n)
) WITHOUT ROWID
"""


@migrations()
def m003_requests(db: Database) -> None:
    """The narrow view people land on."""
    db.execute(_REQUESTS)


@migrations()
def websocket_messages(db: Database) -> None:
    """What was said over websockets."""
    db.execute(_WEBSOCKETS)
