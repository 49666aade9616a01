"""Browsing the capture database: a plain, read-only `datasette` process with our pages on top of it.

`command.py` builds its command line; `plugins/`, `templates/`, `static/` and `metadata.yml` are loaded by that process.
"""
