"""Bodies of the management API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from llmtap.core import config_types as t
from llmtap.core.config import Backend
from llmtap_launcher.members import Member

#: a name that begins with a dash would be an option of `vllm serve`
ModelName = Annotated[t.Text, Field(pattern=r"^[^-\x00][^\x00]*$", max_length=1024)]
#: as in the configuration; described without lists of types, which the oldest FastAPI that will do cannot read
FlagValue = Annotated[t.FlagValue, WithJsonSchema({})]
VariableValue = Annotated[t.VariableValue, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})]


class Wish(BaseModel):
    """Base of request bodies: an unknown member is an error."""

    model_config = ConfigDict(extra="forbid")


class Up(Wish):
    """A model to be served."""

    model: ModelName = Field(description="A Hugging Face name or a folder; for the simulated engine the name it answers to.")
    name: t.Name | None = Field(default=None, description="The backend's name; else one is made from the model's.")
    engine: Literal["vllm", "sim"] = "vllm"
    dtype: str | None = Field(default=None, description="Short for args.dtype.")
    args: dict[t.Flag, FlagValue] = Field(default={}, description="Flags of `vllm serve` without their dashes.")
    env: dict[t.Variable, VariableValue] = Field(default={}, description="Environment of the process, like CUDA_VISIBLE_DEVICES.")
    port: t.OpenPort | None = Field(default=None, description="Where it listens on this machine; else any free port.")
    startup_timeout_s: t.Duration | None = None
    ttl_s: t.Duration | None = Field(default=None, description="Seconds without a request after which it is stopped.")
    group: t.Name | None = Field(default=None, description="Of backends of one group only one runs at a time.")
    max_concurrency: t.Positive | None = None


class Down(Wish):
    """What to stop: a backend by its name, or all that were started for a model."""

    name: t.Name | None = None
    model: t.Text | None = None
    timeout_s: t.DurationOrNone | None = Field(
        default=None, description="Seconds the running requests get to end; else server.drain_timeout_s. 0: none."
    )


class ModelWish(Wish):
    """A model of a backend that the launcher can start."""

    model: t.Text


class BackendWish(Wish):
    """A server that runs already."""

    name: t.Name | None = Field(default=None, description="Else the URL's host and port.")
    url: t.BackendUrl
    kind: Literal["openai", "ollama"] = "openai"
    models: list[t.Text] | None = Field(default=None, description="Models it serves; null: it is asked.")
    api_key: str | None = Field(default=None, description="Key for requests to it; never shown again.")
    max_concurrency: t.Positive | None = None
    on_client_disconnect: Literal["abort", "drain"] = "abort"


class BackendChange(Wish):
    """What is to be different; what is left out stays."""

    draining: bool | None = Field(default=None, description="true: no further requests until it is false again.")
    models: list[t.Text] | None = None
    api_key: str | None = None
    max_concurrency: t.Positive | None = None
    on_client_disconnect: Literal["abort", "drain"] | None = None


class BackendRow(BaseModel):
    """A backend now."""

    name: str
    url: str | None
    kind: str
    origin: Literal["file", "api"] = Field(description="Whether the configuration names it, or this API made it.")
    engine: str | None = Field(description="What the launcher started; null: it runs by itself.")
    model: str | None = Field(description="The model that was started.")
    models: list[str] = Field(description="What it serves.")
    health: str | None = Field(description="As the gateway sees it; null: the gateway does not know it (yet).")
    reason: str | None
    process: str = Field(description="stopped, starting, ready, stopping, failed, asleep; remote: not ours.")
    pid: int | None
    restarts: int
    error: str | None
    draining: bool
    in_flight: int
    max_concurrency: int
    ttl_s: float | None
    group: str | None


class Backends(BaseModel):
    """All of them, in order."""

    backends: list[BackendRow]


class Ready(BaseModel):
    """A model that is served now."""

    backend: BackendRow
    seconds: float = Field(description="How long that took.")


class Stopped(BaseModel):
    """Names of backends that do not run any more."""

    stopped: list[str]


class Request(BaseModel):
    """A request that has not ended. Never its text."""

    id: str
    request_id: str | None = Field(description="What the client called it.")
    endpoint: str
    path: str
    model: str | None
    backend: str | None
    key: str | None
    client: str | None
    stream: bool | None
    state: str = Field(description="receiving, waiting, forwarded, replying.")
    age_s: float
    queue_s: float
    attempts: int
    reply_bytes: int


class Inflight(BaseModel):
    """Oldest first."""

    requests: list[Request]


class Cancelled(BaseModel):
    """The id of a request that was ended."""

    cancelled: str


class Reloaded(BaseModel):
    """What became of the configuration file."""

    reloaded: bool
    waits_for_restart: list[str] = Field(description="Sections that have changed and take a restart.")


class Status(BaseModel):
    """Everything `llmtap status --json` shows."""

    launcher: dict[str, Any] | None
    gateway: dict[str, Any] | None = Field(description="Null while no gateway is connected.")
    writer: dict[str, Any] | None
    backends: list[BackendRow]
    in_flight: int
    waiting: int
    data: str
    database: str
    database_bytes: int


def row(member: Member, seen: dict[str, Any] | None) -> BackendRow:
    """A member, and what a gateway says of it."""
    backend: Backend = member.backend
    launch, process, told = backend.launch, member.process, seen or {}
    return BackendRow(
        name=backend.name,
        url=backend.url,
        kind=backend.kind,
        origin=member.origin,
        engine=launch.engine if launch is not None else None,
        model=launch.model if launch is not None else None,
        models=told.get("models") or list(backend.models or ()),
        health=told.get("state"),
        reason=told.get("reason") or None,
        process=member.state,
        pid=process.pid if process is not None else None,
        restarts=process.restarts if process is not None else 0,
        error=process.error if process is not None else None,
        draining=member.draining,
        in_flight=told.get("in_flight", 0),
        max_concurrency=backend.max_concurrency,
        ttl_s=member.ttl_s,
        group=member.group,
    )
