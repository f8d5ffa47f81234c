"""What may be set: the fields of llmis.toml, with units and defaults."""

import re
import socket
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared import names
from shared.errors import SettingsError
from shared.settings.model_settings import DEMO_MODEL, ModelSettings

MAX_LIMIT = 1_000_000_000_000
MAX_COUNT = 1_000_000_000
MAX_SECONDS = 604_800
"""A week: longer waits do not fit the timers of the system, which count milliseconds in 32 bits."""
Port = Annotated[int, Meta(ge=1, le=65535)]
PortOrNone = Annotated[int, Meta(ge=0, le=65535)]
Processes = Annotated[int, Meta(ge=1, le=1024)]
Connections = Annotated[int, Meta(ge=1, le=1_000_000)]
Count = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
CountOrNone = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Bytes = Annotated[int, Meta(ge=1, le=2**30)]
Limit = Annotated[int, Meta(ge=0, le=MAX_LIMIT)]
MemoryBytes = Annotated[int, Meta(ge=0, le=2**50)]
Seconds = Annotated[float, Meta(ge=0.01, le=MAX_SECONDS)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of the service. The file's keys and these fields are the same."""

    host: str = "127.0.0.1"
    """Address of the web tier."""
    port: Port = 8000
    """Port of the web tier."""
    flower_host: str = "127.0.0.1"
    """Address of Flower."""
    flower_port: PortOrNone = 5555
    """Port of Flower; 0 = no Flower."""
    flower_password: Annotated[str, Meta(pattern=r"^[!-+\--~]*$")] = ""
    """Password of Flower's user `llmis`, with `auth`: visible ASCII characters without the comma.
    Empty = a generated one, in `flower.password` under `data_dir`."""
    data_dir: str = "./var"
    """Embedded Redis, models, logs, last valid denylist. Relative to the configuration file."""
    models_dir: str = ""
    """Folder of the weights; empty = `models` under `data_dir`."""
    redis_url: str = ""
    """Empty = `llmis up` starts an embedded server."""
    redis_timeout_s: Seconds = 5.0
    """Longest wait for an answer of Redis."""
    cors_origins: list[str] = []
    """Origins of other web pages that may use the service, such as https://chat.example.com;
    "*" = all. In the environment: separated by commas."""
    allowed_hosts: list[str] = []
    """Without `auth`: host names that the service answers to, besides localhost and addresses;
    "*" = all. Empty = no others if `host` is a loopback address, else all. With `auth`: all."""
    web_workers: Processes = 1
    """Web processes."""
    web_connections: Connections = 4000
    """Connections that one web process serves at the same time."""
    log_level: str = "info"
    """debug, info, warning, error."""
    log_max_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 64 * 1024 * 1024
    """A log file of `llmis up` or of a replica that is larger is copied to `….log.1` and emptied;
    0 = never ([logs.md](logs.md))."""
    log_files_kept: Annotated[int, Meta(ge=0, le=100)] = 3
    """Such copies of each log: `….log.1` is the latest."""
    log_prompts: bool = False
    """Log the texts of prompts and answers, up to 4,000 characters each ([logs.md](logs.md))."""
    keepalive_s: Seconds = 10.0
    """Interval of SSE comments in a stream without events."""
    stream_pace_ms: Annotated[float, Meta(ge=0, le=100)] = 3.0
    """Pause of a replica between two writes of tokens to Redis: those that a fast model generates
    meanwhile are one event. First tokens and ends do not wait; 0 = no pause."""
    write_timeout_s: Seconds = 30.0
    """A client that reads nothing of its answer for this time is disconnected."""
    read_timeout_s: Seconds = 20.0
    """Time for the head of a request, and for its body, plus one second per 500 bytes received;
    then the client is disconnected."""
    request_timeout_s: Seconds = 600.0
    """Longest time of a request, waiting and running."""
    max_queue_s: SecondsOrNone = 0.0
    """A request that has waited this long fails with 503; 0 = only `request_timeout_s` counts."""
    max_step_gap_s: SecondsOrNone = 60.0
    """A request that gets no token for this time after an earlier one, while its replica makes
    steps, fails; 0 = never."""
    replica_wait_s: Seconds = 15.0
    """A request whose model has lost its last replica fails with 503 after this time."""
    orphan_grace_s: Seconds = 10.0
    """A job without readers stops after this time; a reader that resumes it continues it."""
    drain_grace_s: Seconds = 10.0
    """Time for running jobs to finish when their process stops."""
    web_drain_s: Seconds = 120.0
    """Time for open requests to finish when their web process is replaced by a new one."""
    node_name: Annotated[str, Meta(pattern=names.NODE_NAME_PATTERN + "|^$")] = ""
    """Name of this node; empty = the host name."""
    max_loaded_models: CountOrNone = 0
    """Most replicas on this node; 0 = as many as fit."""
    memory_limit_bytes: MemoryBytes = 0
    """Memory for all replicas of this node together; 0 = what is free."""
    memory_reserve_bytes: MemoryBytes = 268435456
    """Memory that stays free: no replica is loaded into it."""
    min_residence_s: SecondsOrNone = 30.0
    """A loaded model is not evicted for another one before this time."""
    load_timeout_s: Seconds = 600.0
    """A replica that is not ready after this time has failed."""
    stall_timeout_s: Seconds = 30.0
    """A replica with jobs is killed if it makes no engine step, or publishes no event, for this
    time. It must exceed the longest step and 4 × `redis_timeout_s`."""
    job_ttl_s: Annotated[int, Meta(ge=1, le=MAX_SECONDS)] = 600
    """Time that a finished job's log stays in Redis, in seconds."""
    auth: bool = False
    """Require API keys or tokens (docs/security.md). Without it, `host` and `flower_host` must be
    loopback addresses."""
    open_access: bool = False
    """Without `auth`, allow other addresses than loopback: every client that reaches them may do
    everything. So may web pages that users open there (DNS rebinding), unless `allowed_hosts`
    lists the service's names."""
    jwt_jwks: str = ""
    """Public keys of a token issuer, as JWKS: a file, relative to the configuration file, or an
    https URL. Empty = API keys only."""
    jwt_issuer: str = ""
    """Required `iss` of a token."""
    jwt_audience: str = ""
    """Required entry in `aud` of a token."""
    jwt_scope_claim: str = "scope"
    """The claim with the scopes: a list, or a text with spaces between them."""
    jwt_admin_scope: str = "llmis:admin"
    """The value in that claim that grants the scope admin."""
    jwt_limits_claim: str = "llmis_limits"
    """The claim with limits: an object like `{"requests_per_minute": 60}`. Other limits are those
    of the settings."""
    requests_per_minute: Limit = 0
    """Requests of one API key; 0 = no limit."""
    tokens_per_minute: Limit = 0
    """Tokens of one API key, prompt and completion together; 0 = no limit."""
    max_open_requests: Limit = 0
    """Waiting and running requests of one API key; 0 = no limit."""
    max_waiting_requests: Limit = 0
    """Waiting requests of one API key; 0 = no limit."""
    max_queue_length: Count = 1000
    """Waiting requests for one model, of all keys together."""
    lower_class_turn_s: Seconds = 5.0
    """While background or batch requests wait, one of each class goes first at this interval."""
    max_prompt_tokens: CountOrNone = 0
    """Tokens of one prompt; 0 = as many as the context holds."""
    max_completion_tokens: CountOrNone = 0
    """Tokens of one choice: the upper limit of `max_tokens`, and its default; 0 = no limit."""
    denylist: str = ""
    """TOML file with the rules of the filter, relative to the configuration file
    ([filter.md](filter.md)); empty = no filter."""
    max_body_bytes: Bytes = 8 * 1024 * 1024
    """Larger request bodies get 413."""
    max_messages: Count = 4096
    """Messages in a chat request."""
    max_choices: Count = 128
    """Choices of one request, of all prompts together."""
    max_tools: Count = 128
    """Tools of one request."""
    max_tools_bytes: Bytes = 262144
    """Size of all tools of one request together, and of its `chat_template_kwargs`."""
    max_schema_bytes: Bytes = 65536
    """Size of a JSON schema or grammar."""
    max_schema_parts: Count = 1000
    """Properties and references of a JSON schema, or rules of a grammar."""
    max_schema_depth: Annotated[int, Meta(ge=1, le=256)] = 64
    """Levels of nesting of a JSON schema."""
    max_inputs: Count = 2048
    """Inputs of one embedding request."""
    max_prompt_logprobs: Count = 200_000
    """With `echo` and `logprobs`: choices × prompt tokens × (`logprobs` + 1) of one request."""
    models: list[ModelSettings] = msgspec.field(default_factory=lambda: [DEMO_MODEL])
    """The models that the service offers; none = a small demo model."""

    base_dir: str = "."
    """Folder of the configuration file; relative paths start here. It cannot be set."""

    @property
    def data_path(self) -> Path:
        return self.resolve(self.data_dir)

    @property
    def models_path(self) -> Path:
        return self.resolve(self.models_dir) if self.models_dir else self.data_path / "models"

    @property
    def node(self) -> str:
        """The name of this node. Raises SettingsError if the host name is not valid as one."""
        name = self.node_name or socket.gethostname()
        if re.match(names.NODE_NAME_PATTERN, name) is None:
            raise SettingsError(f"node_name: the host name {name!r} cannot be used; set one")
        return name

    @property
    def denylist_path(self) -> Path | None:
        return self.resolve(self.denylist) if self.denylist else None

    def resolve(self, path: str) -> Path:
        """Resolve a path of the settings, relative to the folder of the configuration file."""
        return (Path(self.base_dir) / Path(path).expanduser()).resolve()

    def model(self, name: str) -> ModelSettings | None:
        return next((model for model in self.models if model.name == name), None)

    def weights_path(self, model: ModelSettings) -> Path:
        """Resolve a model's path. Raises SettingsError if it leaves `models_dir`."""
        return self.resolve_weights(model.name, model.path)

    def resolve_weights(self, name: str, given: str) -> Path:
        """Resolve a path that is not from the settings. Raises SettingsError likewise."""
        try:
            path = (self.models_path / given).resolve()
        except (OSError, RuntimeError, ValueError) as exc:
            # A loop of links, a name that is too long, a null character.
            raise SettingsError(f"models: path of {name!r} cannot be followed: {exc}") from exc
        if not path.is_relative_to(self.models_path):
            raise SettingsError(
                f"models: path of {name!r} leaves the model folder: {path} "
                f"is not under {self.models_path}. Move the file there or set models_dir."
            )
        return path

    def template_path(self, model: ModelSettings) -> Path | None:
        return self.resolve(model.chat_template) if model.chat_template else None
