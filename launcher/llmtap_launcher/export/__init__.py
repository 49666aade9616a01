"""Training data out of the capture database: conversations, preference pairs, rated replies, requests, raw rows."""
