"""A configuration as plain data for people to look at: every key, secrets masked."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from llmtap.core.config_types import Section

MASK = "**********"
#: names of flags and variables that hold secrets: HF_TOKEN, api-key, AWS_SECRET_ACCESS_KEY (but not max-num-batched-tokens)
_SECRET_NAME = re.compile(r"(^|[-_.])(key|token|secret|password|passwd|pwd|credential|credentials|auth)$", re.IGNORECASE)
#: fields that are masked whatever they are called like
_SECRET_FIELDS = frozenset({"key_sha256"})


def masked(config: Section) -> dict[str, Any]:
    """`config` as dicts, lists and scalars (JSON and YAML have them all), defaults included, without any secret."""
    return {field.alias or name: _plain(getattr(config, name), name) for name, field in type(config).model_fields.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Section):
        return masked(value)
    if isinstance(value, dict):
        return {key: MASK if _is_secret(key, inner) else _plain(inner, key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, SecretStr) or (name in _SECRET_FIELDS and value is not None):
        return MASK
    if isinstance(value, Path):
        return show_path(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str) and "://" in value:
        return without_password(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_secret(name: str, value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and _SECRET_NAME.search(name) is not None


def show_path(path: Path) -> str:
    """A path as people write it: `./` before a relative one."""
    return str(path) if path.is_absolute() or str(path).startswith(".") else f"./{path}"


def without_password(url: str) -> str:
    """A URL with its password masked, and its query too if there was one (Redis URLs take a password there)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    netloc = parts.netloc
    if "@" in netloc:
        user, _, host = netloc.rpartition("@")
        netloc = f"{user.partition(':')[0]}:{MASK}@{host}"
    elif not parts.query:
        return url
    return parts._replace(netloc=netloc, query=MASK if parts.query else "").geturl()
