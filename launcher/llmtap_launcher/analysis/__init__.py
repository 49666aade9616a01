"""Statistics out of the capture database: what `llmtap analyze`, `slow`, `compare` and `cost` say. Read-only."""
