"""The schema of the capture database, as an ordered list of named changes (`sqlite_utils.Migrations`).

A change that has been released is never edited: databases in the field have run it. `schema.py` says what the columns
mean; `docs/schema.md` is printed from both.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from llmtap_launcher.store.backfill import backfill, fill_digests

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


_WHOLE = """
CREATE TABLE attachments (hash BLOB PRIMARY KEY, mime TEXT, bytes INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE body_attachments (
  body_id INTEGER NOT NULL REFERENCES bodies(id), hash BLOB NOT NULL REFERENCES attachments(hash), PRIMARY KEY (body_id, hash)
) WITHOUT ROWID;
CREATE INDEX body_attachments_hash ON body_attachments(hash);
CREATE TABLE latency_hist (
  hour TEXT NOT NULL, model TEXT NOT NULL, key_name TEXT NOT NULL, metric TEXT NOT NULL, bucket INTEGER NOT NULL,
  n INTEGER NOT NULL, PRIMARY KEY (hour, model, key_name, metric, bucket)
) WITHOUT ROWID;
CREATE TABLE usage_hourly (
  hour TEXT NOT NULL, key_name TEXT NOT NULL, model TEXT NOT NULL, backend TEXT NOT NULL,
  requests INTEGER NOT NULL, errors INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, cost_nanousd INTEGER NOT NULL,
  PRIMARY KEY (hour, key_name, model, backend)
) WITHOUT ROWID;
CREATE TABLE usage_daily (
  day TEXT NOT NULL, key_name TEXT NOT NULL, model TEXT NOT NULL, backend TEXT NOT NULL,
  requests INTEGER NOT NULL, errors INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, cost_nanousd INTEGER NOT NULL,
  PRIMARY KEY (day, key_name, model, backend)
) WITHOUT ROWID;
CREATE TABLE conversations (
  id INTEGER PRIMARY KEY, root_hash BLOB, tip BLOB, first_at TEXT, last_at TEXT, n INTEGER NOT NULL, key_name TEXT, model TEXT,
  title TEXT
);
CREATE INDEX conversations_last ON conversations(last_at);
CREATE TABLE ratings (
  exchange_id INTEGER REFERENCES exchanges(id), name TEXT NOT NULL, value REAL, string_value TEXT, source TEXT NOT NULL,
  comment TEXT, at TEXT NOT NULL, uid TEXT NOT NULL, correction BLOB, UNIQUE (uid, name, source)
);
CREATE INDEX ratings_exchange ON ratings(exchange_id);
CREATE INDEX ratings_correction ON ratings(correction) WHERE correction IS NOT NULL;
CREATE TABLE feedback_waiting (uid TEXT NOT NULL, at TEXT NOT NULL, json TEXT NOT NULL, UNIQUE (uid, at, json));
CREATE TABLE prices (
  id INTEGER PRIMARY KEY, provider TEXT NOT NULL, model_glob TEXT NOT NULL, valid_from TEXT, in_nano INTEGER, out_nano INTEGER,
  cached_nano INTEGER, gpu_hour_nano INTEGER
);
CREATE TABLE exports (id INTEGER PRIMARY KEY, at TEXT NOT NULL, format TEXT NOT NULL, sql TEXT, rows INTEGER, sha256 TEXT);
ALTER TABLE exchanges ADD COLUMN loose_tip BLOB;
ALTER TABLE exchanges ADD COLUMN loose_input BLOB;
DROP INDEX exchanges_input_tip;
DROP INDEX exchanges_output_tip;
CREATE INDEX exchanges_input_tip ON exchanges(input_tip, started_us) WHERE input_tip IS NOT NULL;
CREATE INDEX exchanges_output_tip ON exchanges(output_tip, started_us) WHERE output_tip IS NOT NULL;
CREATE INDEX exchanges_loose_tip ON exchanges(loose_tip, started_us) WHERE loose_tip IS NOT NULL;
CREATE INDEX exchanges_loose_input ON exchanges(loose_input) WHERE loose_input IS NOT NULL;
ALTER TABLE exchanges ADD COLUMN model TEXT GENERATED ALWAYS AS (coalesce(model_response, model_requested)) VIRTUAL;
CREATE INDEX exchanges_served ON exchanges(model, started_at);
CREATE INDEX exchanges_status ON exchanges(status, outcome, finish_reason);
CREATE INDEX exchanges_tools ON exchanges(tools_hash) WHERE tools_hash IS NOT NULL;
CREATE INDEX exchanges_unsettled ON exchanges(started_at) WHERE price_id IS NOT NULL AND cost_nanousd IS NULL;
CREATE INDEX exchanges_response ON exchanges(response_id) WHERE endpoint = 'responses';
"""

#: OpenTelemetry's names: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
_SPANS = """
CREATE VIEW otel_spans AS
SELECT
  e.uid AS span_id,
  coalesce((SELECT p.uid FROM exchanges p WHERE p.conversation_id = e.conversation_id ORDER BY p.id LIMIT 1), e.uid) AS trace_id,
  CASE e.endpoint WHEN 'completions' THEN 'text_completion' WHEN 'embeddings' THEN 'embeddings' ELSE 'chat' END
    || coalesce(' ' || e.model_requested, '') AS name,
  'CLIENT' AS kind,
  e.started_us * 1000 AS start_time_unix_nano,
  e.started_us * 1000 + cast(coalesce(e.duration_ms, 0) * 1000000 AS INTEGER) AS end_time_unix_nano,
  CASE WHEN e.outcome <> 'open' AND (e.status >= 400 OR e.outcome NOT IN ('ok', 'cached')) THEN 'ERROR' ELSE 'UNSET' END
    AS status_code,
  CASE e.endpoint WHEN 'completions' THEN 'text_completion' WHEN 'embeddings' THEN 'embeddings' ELSE 'chat' END
    AS "gen_ai.operation.name",
  e.backend AS "gen_ai.provider.name",
  e.model_requested AS "gen_ai.request.model", e.temperature AS "gen_ai.request.temperature", e.top_p AS "gen_ai.request.top_p",
  e.max_tokens AS "gen_ai.request.max_tokens", e.seed AS "gen_ai.request.seed", e.n AS "gen_ai.request.choice.count",
  e.model_response AS "gen_ai.response.model", e.response_id AS "gen_ai.response.id",
  CASE WHEN e.finish_reason IS NOT NULL THEN json_array(e.finish_reason) END AS "gen_ai.response.finish_reasons",
  e.prompt_tokens AS "gen_ai.usage.input_tokens", e.completion_tokens AS "gen_ai.usage.output_tokens",
  e.conversation_id AS "gen_ai.conversation.id",
  coalesce(e.error_type, CASE WHEN e.outcome NOT IN ('ok', 'cached', 'open') THEN e.outcome END) AS "error.type",
  e.status AS "http.response.status_code", e.path AS "url.path", e.client_ip AS "client.address",
  e.user_agent AS "user_agent.original", e.ttft_ms / 1000.0 AS "gen_ai.server.time_to_first_token",
  e.key_name AS "llmtap.key", e.outcome AS "llmtap.outcome", e.cost_nanousd / 1e9 AS "llmtap.cost_usd"
FROM exchanges e
"""


@migrations()
def m004_whole(db: Database) -> None:
    """Attachments, conversations, statistics that outlive what they count, ratings, prices, exports."""
    for statement in _WHOLE.split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute(_SPANS)
    # the same view over an indexed column: its page counts by model, outcome, status and finish reason
    db.execute("DROP VIEW requests")
    db.execute(_REQUESTS.replace("coalesce(e.model_response, e.model_requested) AS model", "e.model"))


@migrations()
def m005_fill(db: Database) -> None:
    """Conversations and statistics of what earlier versions stored."""
    backfill(db.conn)


_DIGESTS = """
CREATE TABLE digests (
  period TEXT NOT NULL, key_name TEXT NOT NULL, model TEXT NOT NULL, backend TEXT NOT NULL, json TEXT NOT NULL,
  UNIQUE (period, key_name, model, backend)
);
CREATE INDEX exchanges_ttft ON exchanges(ttft_ms) WHERE ttft_ms IS NOT NULL;
CREATE INDEX exchanges_stall ON exchanges(itl_max_ms) WHERE itl_max_ms IS NOT NULL;
CREATE INDEX exchanges_rate ON exchanges(tokens_per_second) WHERE tokens_per_second IS NOT NULL;
CREATE INDEX exchanges_tagged ON exchanges(started_at) WHERE tags IS NOT NULL
"""


@migrations()
def m006_digests(db: Database) -> None:
    """Statistics of millions of exchanges in a moment; the slowest by every measure."""
    for statement in _DIGESTS.split(";\n"):
        db.execute(statement)
    fill_digests(db.conn)


@migrations()
def exports_manifest(db: Database) -> None:
    """All that is to be known of an export, beside its hash."""
    db.execute("ALTER TABLE exports ADD COLUMN manifest_json TEXT")


@migrations()
def m007_counts(db: Database) -> None:
    """What the landing page counts by, in one walk over one index. By its status alone a request is never looked for: the index
    that began with it made SQLite sort a million rows for the newest fifty."""
    db.execute("DROP INDEX exchanges_status")
    db.execute("CREATE INDEX exchanges_counts ON exchanges(model, key_name, status, finish_reason, outcome)")
