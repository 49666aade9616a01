"""The configuration: one frozen model a section, every key with its default and a sentence that says what it is.

These models are the single source of the reference page, the JSON schema and the annotated example in `docs/`.
`config_load.load` makes a `Config` from a file, the environment and the command line; `config_support.NOT_YET` names
the keys whose feature is not built. Durations end in `_s` or `_ms`. Sizes end in `_mb` and `_gb`: of a request body
1 MB is 1,048,576 bytes, of files 1 MB is 1,000,000 bytes.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from llmtap.core import config_types as t
from llmtap.core.errors import ConfigError


def _wrong(message: str, *at: str | int) -> PydanticCustomError:
    """An error of a check over several keys; `at` is the path, from the model that checks, of the key to mend."""
    return PydanticCustomError("llmtap", "{message}", {"message": message, "at": at})


class Server(t.Section):
    """The gateway's listener."""

    host: t.Host = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 or :: for every interface.")
    port: t.Port = Field(
        default=8000,
        description="Port of everything: /v1/* inference, /api/v1/* management, /health, /metrics. 0: any free port.",
    )
    compat_port: t.OpenPort | None = Field(
        default=None, description="A second listener, open only while a backend is healthy, e.g. 5000."
    )
    tls_cert: t.FilePath | None = Field(
        default=None,
        description="Certificate chain in PEM form: the gateway then speaks HTTPS, and nothing else, on its ports.",
    )
    tls_key: t.FilePath | None = Field(default=None, description="Its private key in PEM form; null: it is in tls_cert.")
    workers: t.Workers = Field(
        default=1,
        description="Gateway processes sharing the port, for more requests than one processor carries. "
        "Limits of memory:// count in each by itself.",
    )
    web: bool = Field(default=False, description="Run mitmweb for interactive inspection (port 8081, its token is printed).")
    max_body_mb: t.BodyMegabytes = Field(
        default=64, description="Largest request body in MB (1,048,576 bytes); a larger one is answered 413."
    )
    drain_timeout_s: t.DurationOrNone = Field(
        default=30, description="How long a stop waits for running streams, in seconds. 0: not at all."
    )
    cors_origins: tuple[t.WebOrigin, ...] = Field(
        default=(),
        description="Web pages that may call the gateway from a browser: https://HOST[:PORT], or * for every page. "
        "Empty: the backend's own answer to a browser's question counts.",
    )
    insecure: bool = Field(
        default=False,
        description="Listen for other machines although auth is off; without it such a start is refused.",
    )

    @property
    def scheme(self) -> str:
        """Of the gateway's URLs."""
        return "http" if self.tls_cert is None else "https"

    @model_validator(mode="after")
    def _certified(self) -> Self:
        if self.tls_key is not None and self.tls_cert is None:
            raise _wrong("needs tls_cert, the certificate it belongs to", "tls_key")
        return self

    @model_validator(mode="after")
    def _one_to_look_into(self) -> Self:
        if self.web and self.workers > 1:
            raise _wrong("shows one process: leave out workers, or web", "web")
        return self


class Launch(t.Section):
    """A process the launcher starts for a backend, watches and stops."""

    engine: Literal["vllm", "sim"] = Field(
        default="vllm", description="What to start: vLLM, or the simulated engine that needs no GPU."
    )
    model: t.Text = Field(description="Model to serve: a Hugging Face name or a folder; for sim the name it answers to.")
    args: dict[t.Flag, t.FlagValue] = Field(
        default={},
        description="Flags of `vllm serve` (or `llmtap sim`) without their dashes. true: the bare flag; false, null: left out.",
    )
    env: dict[t.Variable, t.VariableValue] = Field(default={}, repr=False, description="Environment variables for the process.")
    command: t.Command | None = Field(default=None, description="Command to run instead of `vllm` of `venv`, else of PATH.")
    venv: t.FilePath | None = Field(
        default=None, description="Virtual environment that has vLLM; null: the one `llmtap engine install` made."
    )
    startup_timeout_s: t.Duration = Field(
        default=900, description="Seconds until the model must be loaded and ready; then the start has failed."
    )
    ttl_s: t.Duration | None = Field(
        default=None,
        description="Seconds without a request after which it is stopped (a vLLM with enable-sleep-mode: put to sleep); the next "
        "request for its model starts it again and waits for that. null: it runs on.",
    )
    group: t.Name | None = Field(
        default=None,
        description="Backends of one group never run at the same time (they share a GPU): a request for one stops the others, "
        "once their requests are over. The first of a group is started at once, the others when a request needs them.",
    )

    @property
    def on_demand(self) -> bool:
        """Whether a request may have it started."""
        return self.ttl_s is not None or self.group is not None

    @property
    def command_words(self) -> tuple[str, ...] | None:
        """`command` split as a shell would, or None."""
        return None if self.command is None else tuple(shlex.split(self.command))


class Backend(t.Section):
    """One inference server behind the gateway."""

    name: t.Name = Field(description="Name in metrics, the x-llmtap-backend header and the database. Unique.")
    url: t.BackendUrl | None = Field(
        default=None,
        description="Base URL, without /v1; unix:///path/to/socket for `vllm serve --uds`. May be left out with `launch`: then "
        "the launcher takes a free local port.",
    )
    kind: Literal["openai", "ollama"] = Field(
        default="openai", description="API it speaks: openai (vLLM and the like) or ollama."
    )
    models: tuple[t.Text, ...] | None = Field(
        default=None, description="Models it serves; null: asked of /v1/models (or /api/tags) at every health check."
    )
    api_key: t.Secret | None = Field(default=None, description="Key put on requests to this backend; clients never see it.")
    max_concurrency: t.Positive = Field(
        default=256, description="Requests it gets at the same time; more of them wait in the gateway."
    )
    on_client_disconnect: Literal["abort", "drain"] = Field(
        default="abort", description="When a client goes away: abort the generation, or drain (read to the end and record it)."
    )
    launch: Launch | None = Field(default=None, description="Present: the launcher owns the server's process.")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.url is None and self.launch is None:
            raise _wrong("has neither url nor launch; give the server's url, like http://127.0.0.1:8081")
        if self.url is not None and self.launch is not None and not self.url.startswith("http://"):
            raise _wrong("must be http://HOST:PORT where the launcher starts the server itself", "url")
        return self

    @classmethod
    def for_url(cls, url: str) -> Self:
        """A backend for a URL given on a command line; its name is the URL's host and port. Raises ConfigError."""
        try:
            checked = t.check_url(url)
            name = urlsplit(checked).netloc.replace("[", "").replace("]", "") or "unix"
            return cls(name=name, url=checked)
        except ValidationError as error:
            raise ConfigError(f"backend URL: {error.errors(include_input=False)[0]['msg']}") from None
        except ValueError as error:
            raise ConfigError(f"backend URL: {error}") from None


class Routing(t.Section):
    """Which backend a request goes to."""

    policy: Literal["least_connections", "round_robin", "p2c", "prefix_hash"] = Field(
        default="least_connections", description="How to choose among the backends that serve the model."
    )
    aliases: dict[t.Text, t.Text] = Field(
        default={}, description="Names clients may use for a model: {client name: served name}."
    )
    fallbacks: dict[t.Text, tuple[t.Text, ...]] = Field(
        default={}, description="Models to try when nobody serves the first, or all who do fail: {model: [model, ...]}."
    )
    retries: t.Retries = Field(
        default=2, description="Further backends tried when one fails, before the first byte of the reply only."
    )
    direct_ports: tuple[t.OpenPort, ...] = Field(
        default=(),
        description="Ports open to /proxy/<port>/...; empty: the backends' own, and there only what is open anyway.",
    )
    allow_paths: tuple[t.Route, ...] = Field(
        default=(), description="Paths forwarded beyond the built-in list of inference paths."
    )
    health_interval_s: t.Duration = Field(default=5, description="Seconds between two health checks of a backend.")


class Timeouts(t.Section):
    """Limits on the way to a backend, in seconds. 0: none."""

    connect_s: t.DurationOrNone = Field(default=5, description="Until the connection stands.")
    first_byte_s: t.DurationOrNone = Field(default=600, description="From the request to the first byte of the reply.")
    idle_s: t.DurationOrNone = Field(default=600, description="Between two pieces of the reply.")
    total_s: t.DurationOrNone = Field(default=3600, description="For the whole exchange.")


class Queue(t.Section):
    """Requests beyond what the backends take at once wait here."""

    max_concurrency: t.Positive | None = Field(
        default=None, description="Requests in flight over all backends; null: the sum of theirs."
    )
    max_waiting: t.Count = Field(default=1000, description="Requests that may wait; the next is answered 429 queue_full.")
    timeout_s: t.Duration = Field(default=60, description="Seconds a request waits at most; then 503.")


class Key(t.Section):
    """One client key. `llmtap keys new NAME` prints the key once and its line for the configuration."""

    name: t.Name = Field(description="Name in metrics and the database. Unique.")
    key_sha256: t.Sha256 | None = Field(
        default=None, repr=False, description="SHA-256 of the key, in hexadecimal; the key itself is stored nowhere."
    )
    key: t.Secret | None = Field(
        default=None, description="The key in clear, instead of key_sha256. For trying out: whoever reads the file has it."
    )
    expires: datetime | None = Field(
        default=None, description="From then on it is refused: a date or a time, UTC unless it names a zone; null: never."
    )
    models: tuple[t.Text, ...] | None = Field(default=None, description="Models it may use; null: all.")
    rate_limit: t.Positive | None = Field(default=None, description="Requests per window; null: rate_limit.default_limit.")
    tokens_per_minute: t.Positive | None = Field(
        default=None, description="Prompt and completion tokens a minute; null: rate_limit.tokens_per_minute."
    )
    max_concurrency: t.Positive | None = Field(default=None, description="Requests at the same time; null: no limit.")
    budget_usd: t.Amount | None = Field(default=None, description="What it may spend in a budget_period; null: no limit.")
    budget_period: Literal["day", "month", "total"] = Field(
        default="month", description="What budget_usd is for: a day or a month (of UTC), or all time."
    )
    priority: t.Whole = Field(default=0, description="Higher goes first in the queue.")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key is None and self.key_sha256 is None:
            raise _wrong("has no key_sha256; `llmtap keys new NAME` prints a key and its line")
        if self.key is not None and self.key_sha256 is not None:
            raise _wrong("is given besides key_sha256; keep one of the two", "key")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        if self.key is not None:
            return sha256(self.key.get_secret_value().encode()).digest()
        return bytes.fromhex(self.key_sha256 or "")


class Auth(t.Section):
    """Client keys."""

    enabled: bool = Field(default=False, description="Demand a key (Authorization: Bearer, or x-api-key).")
    keys: tuple[Key, ...] = Field(default=(), description="The keys.")
    exempt_paths: tuple[t.Route, ...] = Field(
        default=("/health", "/internal/healthz"), description="Paths that need no key, with everything below them."
    )


class Management(t.Section):
    """The management API, /api/v1/*. Whoever may use it can have this machine run any model, with any flag."""

    enabled: bool = Field(default=True, description="Offer it, where the launcher runs the gateway (`llmtap up`).")
    keys: tuple[t.Name, ...] = Field(
        default=(),
        description="Names of the keys (auth.keys) that may use it. Empty: without auth everybody on this machine, "
        "with auth nobody; any valid key may look.",
    )


class ModelLimit(t.Section):
    """What each key may ask of one model, beside its limits over all."""

    model: t.Text = Field(description="The model, as clients name it.")
    rate_limit: t.Positive | None = Field(default=None, description="Requests per window; null: no limit of its own.")
    tokens_per_minute: t.Positive | None = Field(default=None, description="Tokens a minute; null: no limit of its own.")

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.rate_limit is None and self.tokens_per_minute is None:
            raise _wrong("has no limit; give rate_limit or tokens_per_minute")
        return self


class RateLimit(t.Section):
    """Requests per key and window."""

    enabled: bool = Field(default=False, description="Limit requests.")
    default_limit: t.Positive = Field(default=60, description="Requests per window for a key (or address) without its own limit.")
    window_seconds: t.Positive = Field(default=60, description="Length of the sliding window in seconds.")
    tokens_per_minute: t.Positive | None = Field(
        default=None, description="Prompt and completion tokens a minute for a key without its own limit; null: no limit."
    )
    models: tuple[ModelLimit, ...] = Field(default=(), description="Further limits of each key, for single models.")
    storage: t.StorageUrl = Field(
        default="memory://", repr=False, description="Where counts live: memory://, or redis://HOST:PORT/DB to share them."
    )
    on_storage_error: Literal["allow", "deny"] = Field(
        default="deny", description="While Redis is away: deny (503), or allow every request without counting it."
    )


class Cache(t.Section):
    """Answers of identical, deterministic requests."""

    enabled: bool = Field(default=False, description="Keep and reuse answers.")
    max_entries: t.Positive = Field(default=1000, description="Answers kept.")
    max_mb: t.Size = Field(default=256, description="Memory for them in MB.")
    ttl_s: t.Duration = Field(default=3600, description="Seconds an answer stays good.")
    scope: Literal["key", "all"] = Field(default="key", description="Who shares answers: the requests of one key, or all.")
    only_deterministic: bool = Field(
        default=True, description="Only requests with temperature 0 or a seed (and those that generate nothing)."
    )
    replay: Literal["instant", "original"] = Field(
        default="instant", description="A stream given again comes at once, or at the pace it first came at."
    )
    storage: t.StorageUrl = Field(
        default="memory://", repr=False, description="Where answers live: memory://, or redis://HOST:PORT/DB to share them."
    )


class SingleFlight(t.Section):
    """Identical requests at the same time."""

    enabled: bool = Field(default=False, description="Send one of them to the backend and give all its answer.")
    scope: Literal["key", "all"] = Field(default="key", description="Who shares: the requests of one key, or all.")
    only_deterministic: bool = Field(
        default=False, description="Only requests with temperature 0 or a seed; else what is sampled is shared, too."
    )


class Batching(t.Section):
    """Gathering of small requests."""

    enabled: bool = Field(default=False, description="Gather requests before they are sent.")
    max_batch_size: t.Positive = Field(default=8, description="Texts of a batch.")
    max_wait_ms: t.DurationOrNone = Field(default=50, description="Milliseconds the first waits for others.")
    chat: bool = Field(
        default=False, description="Chats too, for backends that have vLLM's /v1/chat/completions/batch; not streamed ones."
    )


class CaptureRule(t.Section):
    """How much is recorded for some keys or models. The first rule that fits counts."""

    key: t.Text = Field(default="*", description="Name of the key, * and ? as wildcards.")
    model: t.Text = Field(default="*", description="Model the client names, * and ? as wildcards.")
    capture: Literal["full", "metadata", "off"] = Field(
        default="full", description="full; metadata: numbers, no text; off: nothing at all."
    )
    sample: t.Share | None = Field(default=None, description="Share of them recorded in full; null: capture.sample.")


class Filter(t.Section):
    """A change made to requests before they go anywhere."""

    models: tuple[t.Text, ...] | None = Field(default=None, description="Only requests for these models, * and ? as wildcards.")
    keys: tuple[t.Name, ...] | None = Field(default=None, description="Only requests of these keys.")
    endpoints: tuple[t.Name, ...] | None = Field(
        default=None, description="Only requests to these endpoints, as metrics name them: chat, completions, embeddings ..."
    )
    strip: tuple[t.Text, ...] = Field(default=(), description="Parameters taken out.")
    set: dict[t.Text, t.FlagValue] = Field(default={}, description="Parameters set, whatever the client says.")
    max_tokens: t.Positive | None = Field(default=None, description="Most tokens a reply may have; larger wishes are cut.")
    system_prompt: t.Text | None = Field(default=None, description="Words put before the client's own system prompt.")
    redact: dict[t.Pattern, str] = Field(
        default={}, description="{regular expression: replacement}, in everything people have written."
    )
    python: t.Rule | None = Field(default=None, description="An own rule: module:function, or path/to/file.py:function.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("stream", "stream_options"):
            for member, names in (("set", self.set), ("strip", self.strip)):
                if name in names:
                    raise _wrong(f"must not change {name}: the client would not understand the reply", member)
        return self


class Capture(t.Section):
    """The log of all exchanges (spool), from which the database is filled."""

    enabled: bool = Field(default=True, description="Record requests and replies.")
    dir: t.FilePath = Field(
        default=Path("./llmtap-data"), description="Folder of the spool (DIR/spool) and the database (DIR/capture.db)."
    )
    segment_mb: t.Size = Field(
        default=100, description="Size at which a spool file is closed and the next begun, in MB (1,000,000 bytes)."
    )
    timings: bool = Field(default=True, description="Record the arrival time of every piece of a streamed reply.")
    required: bool = Field(
        default=False, description="true: refuse requests that cannot be recorded. false: serve them and count the loss."
    )
    max_spool_gb: t.SizeOrNone = Field(
        default=10, description="Spool size at which bodies are dropped, in GB (1,000,000,000 bytes). 0: no limit."
    )
    sample: t.Share = Field(
        default=1, description="Share of requests recorded in full, 0 to 1; of the others the numbers, no text."
    )
    max_body_kb: t.Count = Field(
        default=0, description="Bodies larger than this (KiB) are left out, the numbers stay. 0: no limit."
    )
    opt_out: bool = Field(default=True, description="Let a request ask to be recorded less: x-llmtap-capture: off, or metadata.")
    rules: tuple[CaptureRule, ...] = Field(default=(), description="How much is recorded by key and model.")


class Store(t.Section):
    """The capture database."""

    path: t.FilePath | None = Field(default=None, description="The SQLite file; null: capture.db in capture.dir.")
    retain_days: t.DurationOrNone = Field(
        default=30, description="Days an exchange is kept. 0: for ever. Statistics (usage_daily, latency_hist) always stay."
    )
    retain_bodies_days: t.DurationOrNone = Field(default=30, description="Days its texts are kept. 0: as long as the exchange.")
    retain_timings_days: t.DurationOrNone = Field(
        default=30, description="Days the arrival times of its tokens are kept. 0: as long as the exchange."
    )
    max_gb: t.SizeOrNone = Field(
        default=50, description="Size at which the oldest exchanges go, in GB (1,000,000,000 bytes). 0: no limit."
    )
    archive_days: t.DurationOrNone = Field(
        default=3,
        description="Days a spool file is kept, compressed (DIR/archive), after the database has all of it. 0: not at all.",
    )


class Datasette(t.Section):
    """The web page over the capture database."""

    enabled: bool = Field(default=True, description="Start Datasette.")
    host: t.Host = Field(
        default="127.0.0.1", description="Address to listen on. Whoever reaches it can read every recorded prompt."
    )
    port: t.Port = Field(default=8001, description="Port. 0: any free port.")
    password: t.Secret | None = Field(
        default=None, repr=False, description="Password of the pages (any user name); needed where others can reach them."
    )


class Metrics(t.Section):
    """Prometheus metrics at /metrics."""

    enabled: bool = Field(default=True, description="Serve /metrics, /internal/metrics and /stats.")
    vllm_names: bool = Field(default=False, description="Export them under vLLM's own names too, for backends that export none.")
    engine_label: t.Name = Field(default="proxy", description="Value of the label `engine` of those.")
    max_model_len: t.Positive = Field(
        default=32768, description="Longest context served: the top bucket of the token histograms."
    )


class Logging(t.Section):
    """The log on standard output."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], t.Upper] = Field(
        default="INFO", description="Least severity that is logged."
    )
    json_format: bool = Field(
        default=True, alias="json", description="One JSON object a line; on a terminal the log is readable text anyway."
    )
    request_log: bool = Field(default=True, description="A line for every finished request, without its text.")
    prompts: bool = Field(default=False, description="With its text: the last message or the prompt, up to 8192 characters.")


class Price(t.Section):
    """What tokens of a model cost, in US dollars."""

    model: t.Text = Field(description="Model name, * and ? as wildcards.")
    provider: t.Text | None = Field(default=None, description="Who charges it; null: yourself.")
    valid_from: date | None = Field(default=None, description="First day it holds; null: since ever.")
    input_usd_per_million: t.Amount | None = Field(default=None, description="A million prompt tokens.")
    output_usd_per_million: t.Amount | None = Field(default=None, description="A million completion tokens.")
    cached_usd_per_million: t.Amount | None = Field(
        default=None, description="A million prompt tokens found in the prefix cache; null: as input."
    )
    gpu_hour_usd: t.Amount | None = Field(default=None, description="An hour of the machine, instead of a price per token.")

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.gpu_hour_usd is None and (self.input_usd_per_million is None or self.output_usd_per_million is None):
            raise _wrong("has no price; give input_usd_per_million and output_usd_per_million, or gpu_hour_usd")
        return self


class Config(t.Section):
    """The whole configuration. Immutable; `Config()` is the built-in defaults."""

    server: Server = Field(default=Server(), description="The gateway's listener.")
    backends: tuple[Backend, ...] = Field(default=(), description="The inference servers, in order of preference.")
    routing: Routing = Field(default=Routing(), description="Which backend a request goes to.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Limits on the way to a backend.")
    queue: Queue = Field(default=Queue(), description="Where requests wait for a free backend.")
    auth: Auth = Field(default=Auth(), description="Client keys.")
    management: Management = Field(default=Management(), description="The management API.")
    rate_limit: RateLimit = Field(default=RateLimit(), description="Requests per key and window.")
    cache: Cache = Field(default=Cache(), description="Reuse of answers.")
    single_flight: SingleFlight = Field(default=SingleFlight(), description="One answer for identical requests at the same time.")
    batching: Batching = Field(default=Batching(), description="Gathering of small requests.")
    filters: tuple[Filter, ...] = Field(default=(), description="Changes made to requests, one after the other.")
    capture: Capture = Field(default=Capture(), description="The log of all exchanges.")
    store: Store = Field(default=Store(), description="The capture database.")
    datasette: Datasette = Field(default=Datasette(), description="The web page over the database.")
    metrics: Metrics = Field(default=Metrics(), description="Prometheus metrics.")
    logging: Logging = Field(default=Logging(), description="The log on standard output.")
    prices: tuple[Price, ...] = Field(default=(), description="Your own rates; those of public models are known.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique([b.name for b in self.backends], "backends")
        _unique([k.name for k in self.auth.keys], "auth", "keys")
        _unique([m.model for m in self.rate_limit.models], "rate_limit", "models", of="model")
        digests = [k.digest for k in self.auth.keys]
        for index, digest in enumerate(digests):
            if digest in digests[:index]:
                raise _wrong("is the key of another one already; every name needs a key of its own", "auth", "keys", index)
        known = [k.name for k in self.auth.keys]
        for index, name in enumerate(self.management.keys):
            if name not in known:
                raise _wrong("is the name of no key in auth.keys; add the key there", "management", "keys", index)
        server, page = self.server, self.datasette
        if page.enabled and page.port and page.port in (server.port, server.compat_port) and page.host == server.host:
            raise _wrong("is the gateway's own port; choose another", "datasette", "port")
        if server.compat_port is not None and server.compat_port == server.port:
            raise _wrong("is server.port already; choose another or remove it", "server", "compat_port")
        for index, port in enumerate(self.routing.direct_ports):
            if port in (server.port, server.compat_port):
                raise _wrong("is the gateway's own port; remove it", "routing", "direct_ports", index)
        for model, others in self.routing.fallbacks.items():
            if model in others:
                raise _wrong("names the model itself; remove it there", "routing", "fallbacks", model)
        return self

    @property
    def spool_dir(self) -> Path:
        """Folder of the spool segments."""
        return self.capture.dir / "spool"

    @property
    def db_path(self) -> Path:
        """The capture database: `store.path`, else `capture.db` in `capture.dir`."""
        return self.store.path if self.store.path is not None else self.capture.dir / "capture.db"

    def with_urls(self, urls: Iterable[str]) -> Self:
        """This configuration with the servers at `urls` as its only backends, named host:port. Raises ConfigError."""
        backends = tuple(Backend.for_url(url) for url in urls)
        for name, n in Counter(b.name for b in backends).items():
            if n > 1:
                raise ConfigError(f"backend URL: {name} is given twice")
        return self.model_copy(update={"backends": backends})

    def with_sims(self, model: str = "sim-small") -> Self:
        """This configuration with two simulated engines, `a` and `b`, as its only backends (`llmtap up --dry-run`)."""
        launch = Launch(engine="sim", model=model)
        return self.model_copy(update={"backends": tuple(Backend(name=name, launch=launch) for name in ("a", "b"))})

    @classmethod
    def for_reverse_target(cls, url: str) -> Self:
        """Defaults with the server at `url` as the one backend (`mitmdump --mode reverse:URL`). Raises ConfigError."""
        return cls().with_urls([url])

    @classmethod
    def dry_run(cls, model: str = "sim-small") -> Self:
        """Defaults with two simulated engines, `a` and `b`."""
        return cls().with_sims(model)


def _unique(names: list[str], *at: Any, of: str = "name") -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise _wrong("is the name of another one already; choose a unique name", *at, index, of)
        seen.add(name)
