"""pip's own configuration, handed to uv: indexes, link folders, certificates, as the user has set them up for pip.

uv does not read pip's files. Nothing is decided here: what pip would use, uv is told to use; what the user set for uv stays.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

#: pip's key -> uv's variable, how its list is joined (None: one value)
_VARIABLES: dict[str, tuple[str, str | None]] = {
    "index-url": ("UV_DEFAULT_INDEX", None),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", None),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", None),
    "proxy": ("ALL_PROXY", None),
    "timeout": ("UV_HTTP_TIMEOUT", None),
    "default-timeout": ("UV_HTTP_TIMEOUT", None),
}
#: of lower precedence first: pip lets the command's section beat `global`, and PIP_* beat both
_SECTIONS = ("global", "install", ":env:")


def parse(listing: str) -> dict[str, str]:
    """`pip config list` (lines `section.key='value'`) as `{key: value}`, as pip would use them. Other lines are passed over."""
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(.+)", line.strip())
        if match is None:
            continue
        section, key, literal = match.groups()
        try:
            value = str(ast.literal_eval(literal))
        except (ValueError, SyntaxError):
            continue
        rank = _SECTIONS.index(section)
        if key not in found or rank >= found[key][0]:
            found[key] = (rank, value)
    return {key: value for key, (_, value) in found.items()}


def uv_variables(config: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that make uv use pip's configuration; none that `env` has already."""
    out: dict[str, str] = {}
    for key, (variable, joiner) in _VARIABLES.items():
        value = config.get(key, "").strip()
        if not value or variable in env or variable in out:
            continue
        if key == "no-index":
            if value.lower() in ("0", "false", "no", "off"):
                continue
            value = "1"
        out[variable] = joiner.join(value.split()) if joiner is not None else value
    # pip looks at all indexes alike and takes the best version; uv by itself stops at the first index that knows the name
    if "UV_INDEX" in out and "UV_INDEX_STRATEGY" not in env:
        out["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return out
