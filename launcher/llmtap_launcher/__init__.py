"""llmtap_launcher: what runs around mitmproxy: processes, command line, store, Datasette, the simulated engine."""
