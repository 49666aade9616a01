"""llmtap: the addons that run inside mitmproxy and the layers below them (`core`, `wire`, `policy`, `spool`, `lane`)."""

__version__ = "0.1.0"
