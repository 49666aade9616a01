"""History from elsewhere into the capture database: logs, batches, HAR and mitmproxy flow files."""
