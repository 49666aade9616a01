"""Where the script for `mitmdump -s` lies, found without importing what mitmproxy will import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llmtap.core.errors import LlmtapError


def script_path() -> Path:
    """`addons/gateway.py` of a checkout, `llmtap/script/gateway.py` of an installed wheel."""
    spec = importlib.util.find_spec("llmtap")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    for folder in folders:
        # the installed one first: beside an installed package, in site-packages, a gateway.py would be somebody else's
        for place in (folder / "script" / "gateway.py", folder.parent / "gateway.py"):
            if place.is_file():
                return place.resolve()
    raise LlmtapError("the script gateway.py is missing beside the llmtap package; install llmtap again")
