"""The append-only log between the gateway and the store: framing, segment writer, segment reader."""
