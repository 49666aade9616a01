"""Wire formats without I/O: bytes in, events and a `Summary` out. Parse or raise `WireError`, nothing else."""
