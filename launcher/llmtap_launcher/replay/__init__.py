"""Captured requests sent again, to another model or backend, and both replies beside each other.

A replay is an exchange like any other: it is stored with the tags `replay` and `replay:<run>` and with `{"replay": run,
"replay_of": uid}` as its metadata, whoever records it, the gateway it goes through or (sent straight to a server) this command.
"""
