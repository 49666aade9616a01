"""What a client is told: arguments, else environment variables, else defaults; wrong ones are refused when it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_URL = "http://localhost:8081/v1"
DEFAULT_DIR = "./logs/vllm"
DEFAULT_MB = 100.0


@dataclass(frozen=True, slots=True)
class Settings:
    """`base_url` ends in `/v1` (or the path that was given), without a slash. `log_dir` None: nothing is logged."""

    base_url: str
    backend: str
    log_dir: Path | None
    segment_bytes: int
    timeout: float | None
    retries: int
    headers: Mapping[str, str]
    model: str | None
    key_name: str | None


def settings(
    base_url: str | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    enable_file_logging: bool = True,
    log_format: str = "jsonl",
    max_log_size_mb: float | None = None,
    timeout: float | None = 600.0,
    *,
    api_key: str | None = None,
    max_retries: int = 2,
    headers: Mapping[str, str] | None = None,
    model: str | None = None,
    key_name: str | None = None,
    backend: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Settings:
    """Raises ValueError: one line that names the argument (or variable) and what may be."""
    env = os.environ if env is None else env
    if log_format != "jsonl":
        raise ValueError(f"log_format {log_format!r}: records are JSON lines: jsonl")
    size = _size(max_log_size_mb, env)
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout {timeout!r}: seconds above 0, or None for none")
    if max_retries < 0:
        raise ValueError(f"max_retries {max_retries!r}: 0 or more")
    url = _url(base_url or env.get("VLLM_BASE_URL") or DEFAULT_URL)
    key = api_key or env.get("VLLM_API_KEY")
    return Settings(
        base_url=url,
        backend=backend or urlsplit(url).netloc.rpartition("@")[2],
        log_dir=Path(log_dir or env.get("VLLM_LOG_DIR") or DEFAULT_DIR) if enable_file_logging else None,
        segment_bytes=size,
        timeout=timeout,
        retries=max_retries,
        headers={**({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})},
        model=model,
        key_name=key_name,
    )


def _size(given: float | None, env: Mapping[str, str]) -> int:
    raw = env.get("VLLM_MAX_LOG_SIZE_MB") if given is None else given
    try:
        size = float(DEFAULT_MB if raw in (None, "") else raw)
    except ValueError:
        size = -1.0
    if not 0 < size < 1e6:
        raise ValueError(f"max_log_size_mb (VLLM_MAX_LOG_SIZE_MB) {raw!r}: megabytes, above 0")
    return max(1, round(size * 1e6))


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises for what is no port
    except ValueError as error:
        raise ValueError(f"base_url (VLLM_BASE_URL) {text!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url (VLLM_BASE_URL) {text!r}: http://HOST:PORT/v1 is expected")
    if parts.query or parts.fragment:
        raise ValueError(f"base_url (VLLM_BASE_URL) {text!r}: without ? and #")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"
