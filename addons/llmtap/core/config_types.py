"""Building blocks of the configuration models: the base section and the checked types its fields are made of.

Messages of the checks never contain the value (it may be a secret) and say what to write instead.
"""

from __future__ import annotations

import re
import shlex
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

_HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
_NAME = r"^[A-Za-z0-9_.:-]{1,64}$"
_SHA256 = r"^[0-9a-fA-F]{64}$"
#: `vllm serve` flags that the launcher sets itself, and where they come from
_OWN_FLAGS = {
    "host": "the backend's url",
    "port": "the backend's url",
    "uds": "the backend's url",
    "api-key": "the backend's api_key",
}
_SOCKET_PATH = 107  # sun_path of Linux, less its NUL
_YEARS_S = 100_000_000  # about three years: beyond it a number of seconds is a mistake
_SIZE = 1_000_000  # no file of ours is a million gigabytes


class Section(BaseModel):
    """Base of every configuration model: unknown keys refused, immutable, inputs kept out of error texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take true for 1
        raise ValueError("must be a number, not true or false")
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty; give a value or remove the key")
    return value


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    _not_empty(text)
    if any(c <= " " or c > "~" for c in text):
        raise ValueError(
            "contains white space or other characters that cannot be sent in a header; check for a stray line break or quote"
        )
    return value


def _name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError("must be 1 to 64 of the characters A-Z a-z 0-9 _ . : - (it labels metrics and headers)")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(_SHA256, value):
        raise ValueError("must be the 64 hexadecimal digits of a SHA-256; `printf %s KEY | sha256sum` prints them")
    return value.lower()


def _host(value: str) -> str:
    text = value.removeprefix("[").removesuffix("]")
    try:
        return str(ip_address(text))
    except ValueError:
        pass
    if "://" in value or "/" in value:
        raise ValueError("must be a host name or address only, like 127.0.0.1; leave out the scheme and the path")
    if ":" in value:
        raise ValueError("must be a host name or address only; the port has its own key")
    if not _HOSTNAME.fullmatch(value) or len(value) > 253:
        raise ValueError("must be a host name or an IP address, like 127.0.0.1")
    return value


def _split(value: str) -> SplitResult:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a valid URL; its port must be a number from 1 to 65535, an IPv6 address stands in [ ]") from None
    return parts


def _socket_url(value: str) -> str:
    scheme, _, rest = value.partition(":")
    if scheme.lower() == "unix" and rest.startswith("/") and not rest.startswith("//"):
        return f"unix://{rest}"
    if scheme.lower() == "http+unix" and rest.startswith("//"):
        return f"unix://{unquote(rest[2:].rstrip('/'))}"
    return value


def check_url(value: str) -> str:
    """A backend's base URL, normalised: `http://host[:port]`, `https://…` or `unix:///path/to/socket`. Raises ValueError.

    Also taken for a socket: `unix:/path` (as nginx writes it) and `http+unix://%2Fpath` (as requests-unixsocket does).
    """
    value = _socket_url(value)
    if "://" not in value:
        raise ValueError("must be a URL like http://127.0.0.1:8081 (the scheme is missing)")
    parts = _split(value)
    if any(c <= " " or c > "~" for c in value):
        raise ValueError("contains white space or other characters a URL cannot have")
    scheme = parts.scheme.lower()
    if scheme == "unix":
        if parts.netloc or len(parts.path) < 2 or parts.query or parts.fragment:
            raise ValueError("must be unix:// and the absolute path of the socket, like unix:///run/vllm.sock")
        if len(parts.path.encode()) > _SOCKET_PATH:
            raise ValueError(f"the path of a socket can have {_SOCKET_PATH} bytes at most")
        return f"unix://{parts.path}"
    if scheme not in ("http", "https"):
        raise ValueError("must start with http://, https:// or unix://")
    if "@" in parts.netloc:
        raise ValueError("must not contain a user name or password; put a key into api_key")
    if parts.query or parts.fragment:
        raise ValueError("must be the server's base URL; leave out ? and # and what follows")
    path = parts.path.rstrip("/")
    if path == "/v1" or path.startswith("/v1/"):
        raise ValueError("must be the server's base URL; leave out /v1")
    if path:
        raise ValueError("must be the server's base URL; leave out the path")
    if parts.port == 0 or not parts.hostname:
        raise ValueError("must name a host and, unless it is the scheme's own, a port from 1 to 65535")
    host = _host(parts.hostname)
    authority = f"[{host}]" if ":" in host else host
    return f"{scheme}://{authority}" + (f":{parts.port}" if parts.port is not None else "")


def _storage(value: str) -> str:
    if value == "memory://":
        return value
    parts = _split(value)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError("must be memory:// or redis://HOST:PORT/DB (rediss:// for TLS)")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("must not be empty; give a path or remove the key")
        if "\0" in value:
            raise ValueError("contains a NUL character, which no path can have")
    return value


def _expand(value: Path) -> Path:
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and a user who has no home directory") from None


def _route(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or any(c in value for c in "?#%\\;*") or "//" in value:
        raise ValueError("must be a plain path beginning with /, like /v1/load_lora_adapter (no query, no wildcard)")
    return value


def _origin(value: str) -> str:
    if value == "*":
        return value
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.path or parts.query:
        raise ValueError("must be https://HOST or https://HOST:PORT as browsers send it (no path, no slash at the end), or *")
    return value.lower()


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return value


def _rule(value: str) -> str:
    module, _, function = value.rpartition(":")
    if not function.isidentifier() or not (module.endswith(".py") or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module)):
        raise ValueError("must be module:function or path/to/file.py:function")
    return value


def _command(value: str) -> str:
    _not_empty(value)
    try:
        words = shlex.split(value)
    except ValueError:
        raise ValueError("must be a command line as for a shell, its quotes closed") from None
    if not words:
        raise ValueError("must not be empty; give a command or remove the key")
    return value


def _flag(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("is a flag: leave out the leading dashes")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        raise ValueError("is not a flag's name; write dtype or gpu-memory-utilization")
    own = _OWN_FLAGS.get(value.replace("_", "-").lower())
    if own is not None:
        raise ValueError(f"is set by the launcher from {own}; remove it here")
    return value


def _flag_value(value: Any) -> Any:
    """Plain data: null, true/false, number, text, and lists and mappings of these (vLLM takes some flags as JSON)."""
    if isinstance(value, list | tuple):
        return tuple(_flag_value(v) for v in value)
    if isinstance(value, dict):
        return {str(k): _flag_value(v) for k, v in value.items()}
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError("must be text, a number, true, false, null, a list or a mapping")
    return value


def _variable(value: str) -> str:
    if not value or "=" in value or "\0" in value:
        raise ValueError("is not the name of an environment variable")
    return value


def _variable_value(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):  # CUDA_VISIBLE_DEVICES: 0
        return str(value)
    if isinstance(value, str) and "\0" in value:
        raise ValueError("contains a NUL character, which no environment variable can have")
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


#: goes last in a number's annotation, so that it runs first: bounds stay visible to the JSON schema
NUMERIC = BeforeValidator(_number)
Whole = Annotated[int, NUMERIC]
Count = Annotated[int, Field(ge=0), NUMERIC]
Positive = Annotated[int, Field(ge=1), NUMERIC]
Port = Annotated[int, Field(ge=0, le=65535), NUMERIC]
OpenPort = Annotated[int, Field(ge=1, le=65535), NUMERIC]
Workers = Annotated[int, Field(ge=1, le=256), NUMERIC]
Retries = Annotated[int, Field(ge=0, le=10), NUMERIC]
BodyMegabytes = Annotated[int, Field(ge=1, le=65536), NUMERIC]
Amount = Annotated[float, Field(ge=0), NUMERIC]
Duration = Annotated[float, Field(gt=0, le=_YEARS_S), NUMERIC]
DurationOrNone = Annotated[float, Field(ge=0, le=_YEARS_S), NUMERIC]
Share = Annotated[float, Field(ge=0, le=1), NUMERIC]
Size = Annotated[float, Field(gt=0, le=_SIZE), NUMERIC]
SizeOrNone = Annotated[float, Field(ge=0, le=_SIZE), NUMERIC]
Text = Annotated[str, AfterValidator(_not_empty), Field(json_schema_extra={"minLength": 1})]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": _NAME})]
Sha256 = Annotated[str, AfterValidator(_sha256), Field(json_schema_extra={"pattern": _SHA256})]
Host = Annotated[str, AfterValidator(_host)]
BackendUrl = Annotated[str, AfterValidator(check_url), Field(json_schema_extra={"pattern": "^(https?://|unix:/|http\\+unix://)"})]
StorageUrl = Annotated[str, AfterValidator(_storage), Field(json_schema_extra={"pattern": "^(memory|rediss?)://"})]
FilePath = Annotated[Path, BeforeValidator(_path), AfterValidator(_expand)]
Route = Annotated[str, AfterValidator(_route), Field(json_schema_extra={"pattern": "^/"})]
WebOrigin = Annotated[str, AfterValidator(_origin), Field(json_schema_extra={"pattern": "^(https?://|[*]$)"})]
Pattern = Annotated[str, AfterValidator(_pattern)]
Rule = Annotated[str, AfterValidator(_rule)]
Command = Annotated[str, AfterValidator(_command)]
Flag = Annotated[str, AfterValidator(_flag)]
FlagValue = Annotated[
    Any,
    AfterValidator(_flag_value),
    WithJsonSchema({"type": ["string", "number", "boolean", "null", "array", "object"]}),
]
Variable = Annotated[str, AfterValidator(_variable)]
VariableValue = Annotated[str, BeforeValidator(_variable_value), WithJsonSchema({"type": ["string", "number"]})]
Upper = BeforeValidator(_upper)
