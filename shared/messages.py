"""The wire messages: the whole border between the web tier and the replicas.

A `Job` goes one way, `Event`s come back. Both are frozen, typed, versioned and encoded as
MessagePack, here and nowhere else. Every event of a job carries a sequence number that starts
at 0 and has no holes, and the attempt that produced it.
"""

from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

VERSION = 5


class DecodeError(ValueError):
    """Bytes that are not the message they should be. They may hold a prompt: the text of the
    error, which is logged, does not quote them."""

    def __init__(self, reason: str, payload: bytes) -> None:
        super().__init__(f"{reason} ({len(payload)} bytes)")
        self.payload = payload[:200]


class JobKind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


class Priority(StrEnum):
    """What goes first where jobs wait."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"
    BATCH = "batch"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class ToolCall(Struct, frozen=True):
    """A call that the assistant made earlier in the conversation."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


class ChatMessage(Struct, frozen=True):
    role: str
    """system, user, assistant or tool."""
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] = []
    """For the role assistant."""
    tool_call_id: str | None = None
    """For the role tool: the call that it answers."""
    reasoning: str | None = None
    """For the role assistant: what it thought before it spoke."""


class Tool(Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON schema of the arguments; empty = any object."""
    is_strict: bool = False
    """A schema that says what cannot be enforced is refused; else that is left out."""


class ToolChoice(StrEnum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


class Grammar(Struct, frozen=True):
    """What a completion has to match as a whole."""

    kind: GrammarKind
    source: str
    """JSON text of the schema, the regular expression, or the Lark grammar."""
    param: str = "response_format"
    """The parameter that asked for it: what an error names."""


class Sampling(Struct, frozen=True):
    """How tokens are drawn. The defaults are OpenAI's: an unchanged distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens of the completion so far, multiplies the negative
    ones; 1 = off."""
    seed: int | None = None
    """Choice i of a job draws with seed + i. None = a seed of its own each time."""
    logit_bias: dict[int, float] = {}
    """Token id → added to its logit."""


class AnswerOptions(Struct, frozen=True, kw_only=True):
    """What the web tier has to know to word the answer, today or when its reader comes back."""

    wants_usage: bool = False
    """In a stream, which has it only on demand."""
    wants_logprobs: bool = False
    num_wanted: int = 1
    """Choices that are shown of `Job.num_choices`: the best ones."""
    tier: str | None = None
    metadata: dict[str, str] = {}


class Job(Struct, frozen=True, kw_only=True):
    """One request as the replica needs it."""

    version: int = VERSION
    id: str
    """The request id, which is also the Celery task id."""
    model: str
    kind: JobKind
    messages: list[ChatMessage] = []
    """For `JobKind.CHAT`."""
    prompts: list[str | list[int]] = []
    """For the other kinds: texts or token ids."""
    token_texts: bool = False
    """For `JobKind.TOKENIZE`: the texts of the tokens are wanted, too."""
    add_special: bool = True
    """For `JobKind.TOKENIZE`: the tokens that begin and end every text are counted in."""
    tools: list[Tool] = []
    tool_choice: ToolChoice = ToolChoice.AUTO
    tool_name: str | None = None
    """With `ToolChoice.REQUIRED`: it has to be this one."""
    parallel_tool_calls: bool = True
    template_arguments: dict[str, Any] = {}
    """Further variables of the chat template, such as `enable_thinking`."""
    suffix: str | None = None
    """For `JobKind.COMPLETION`: the text that comes after the completion."""
    echo: bool = False
    """For `JobKind.COMPLETION`: the text of the prompt comes first."""
    prompt_logprobs: bool = False
    """With `echo` and `logprobs`: those of the prompt, too."""
    num_choices: int = 1
    """Choices per prompt. Choice index = prompt index * num_choices + i."""
    max_tokens: int | None = None
    """None = up to the end of the context. 0 = read the prompt only."""
    min_tokens: int = 0
    """No end token is drawn before so many tokens; stop strings still end the text."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever end token is drawn."""
    logprobs: int | None = None
    """Number of alternatives to report for each token; None = no log probabilities at all."""
    grammar: Grammar | None = None
    stop: list[str] = []
    sampling: Sampling = Sampling()
    reply_channel: str = ""
    """Not used any more: replicas of the version before cannot read a job without it."""
    priority: Priority = Priority.INTERACTIVE
    owner: str = "anonymous"
    """Whose request it is: limits and turns are its own, and nobody else may read the answer."""
    charged_tokens: int = 0
    """What its owner's tokens a minute were charged with when it was admitted."""
    answer: AnswerOptions = AnswerOptions()
    is_over: bool = False
    """It has ended: what is left of it can word its answer, and cannot be run."""
    created_at: float
    """Unix time in seconds."""
    deadline_at: float
    """Unix time in seconds after which nobody waits for the job any more."""


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that were taken from the KV cache."""


class Timings(Struct, frozen=True):
    """Durations in seconds as the replica measured them."""

    queue_s: float
    """Enqueued by the web tier → first admitted by the engine (wall clocks of two hosts)."""
    prefill_s: float
    decode_s: float


class Started(Struct, frozen=True, tag="start", array_like=True):
    """The engine has admitted the job."""

    seq: int
    attempt: int
    prompt_tokens: int


class Progress(Struct, frozen=True, tag="prefill", array_like=True):
    """Prefill goes on: `done` of `total` prompt tokens."""

    seq: int
    attempt: int
    done: int
    total: int


class ToolCallDelta(Struct, frozen=True, array_like=True):
    """A piece of a tool call: id and name come once, with the first one of that index."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Logprob(Struct, frozen=True, array_like=True):
    token_id: int
    logprob: float
    """Natural logarithm of the probability."""
    piece: bytes
    """The bytes that the token adds to the text; they may be part of a character."""
    name: bytes = b""
    """The own text of a token that adds none, such as the one that ends a turn."""


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """A token in the model's own distribution: before temperature, penalties, bias, truncation
    and grammar."""

    chosen: Logprob
    top: list[Logprob]
    """The most probable tokens, best first; the chosen one need not be among them."""
    is_end: bool = False
    """The token ends the choice and is no part of its text."""


class FilterMatch(Struct, frozen=True, array_like=True):
    """A match of the denylist. Its place counts the characters of all that the choice's tokens
    have given: what was masked, and a space that was left off, count too."""

    rule: str
    action: str
    begin: int
    end: int


class Filtered(Struct, frozen=True, array_like=True):
    """What the denylist has done to a choice."""

    seen: int
    """Characters that it has let through or masked so far, counted likewise."""
    matches: list[FilterMatch] = []
    """New ones."""


class Delta(Struct, frozen=True, tag="delta", array_like=True):
    """What a choice has gained. Its texts never end inside a UTF-8 character."""

    seq: int
    attempt: int
    index: int
    """Choice index."""
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    """Set in the last delta of the choice."""
    reasoning: str = ""
    """What the model thinks before it speaks; it comes before the text."""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprobs] = []
    """One for each of `token_ids`, if the job asked for them."""
    filtered: Filtered | None = None
    """None = no rule is about the model's answers."""


class Echo(Struct, frozen=True, tag="echo", array_like=True):
    """A prompt, for a job with `echo`. It comes once, before the deltas of the prompt's first
    choice; those of the other choices may come earlier."""

    seq: int
    attempt: int
    index: int
    """Of the prompt's first choice."""
    text: str
    logprobs: list[TokenLogprobs] = []
    """With `prompt_logprobs`: one for each token; what the first one says means nothing."""


class Embedding(Struct, frozen=True, tag="embedding", array_like=True):
    """The vector of one input."""

    seq: int
    attempt: int
    index: int
    vector: bytes
    """float32, little-endian."""


class Finished(Struct, frozen=True, tag="end", array_like=True):
    """The last event of a job that ended well. Written by the replica, the owner of the count."""

    seq: int
    attempt: int
    usage: Usage
    timings: Timings


class Failed(Struct, frozen=True, tag="fail", array_like=True):
    """The last event of a job that ended badly: an error of `shared.errors`, field by field."""

    seq: int
    attempt: int
    status: int
    code: str | None
    message: str
    param: str | None = None


def later_filtered(first: Filtered | None, then: Filtered | None) -> Filtered | None:
    """What two parts of a choice, one behind the other, have come to."""
    if first is None or then is None:
        return then or first
    return Filtered(then.seen, first.matches + then.matches)


Event = Started | Progress | Delta | Echo | Embedding | Finished | Failed


class JobEvent(Struct, frozen=True, array_like=True):
    """One event on a hub channel, addressed to a job."""

    job_id: str
    event: Event
    published_at: float = 0.0
    """Unix time in seconds, by the replica's clock."""


class _RawJobEvent(Struct, frozen=True, array_like=True):
    job_id: str
    event: msgspec.Raw
    published_at: float


class Capability(StrEnum):
    """What a model can be asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    INFILL = "infill"
    """Completions with a `suffix`."""
    EMBEDDING = "embedding"


class ReplicaState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class ReplicaRecord(Struct, frozen=True, kw_only=True):
    """What a replica says of itself, about twice a second."""

    version: int = VERSION
    id: str
    model: str
    engine: str
    device: str
    node: str
    assignment_id: str
    pid: int
    versions: dict[str, str]
    state: ReplicaState
    stage: str
    """While it loads: what it does, and how far it is with loading as a whole."""
    fraction: float
    slots: int
    busy_slots: int
    waiting_sequences: int
    context_length: int
    """Tokens per slot, prompt and completion together."""
    capabilities: list[Capability]
    """Empty while it loads."""
    steps: int
    """Engine steps so far: moves whenever jobs run."""
    step_age_s: float
    """Seconds for which there was something to do and no step ended."""
    publish_age_s: float = 0.0
    """Seconds for which there was something to publish and the publisher did not even try."""
    generated_tokens: int
    tokens_per_s: float
    """Over the last seconds."""
    slot_s: float = 0.0
    """Seconds that a job holds slots of late, those of all its slots together; 0 = none has
    ended yet."""
    memory_bytes: int
    """Resident memory of the process."""
    mapped_bytes: int
    """The part of it that files stand behind: the system counts it as free."""
    estimated_bytes: int
    """What the estimate said before the load."""
    device_bytes: dict[str, int] = {}
    """GPU → memory that the process holds there."""
    kv_usage: float | None = None
    """Part of the KV cache that running sequences hold, 0 to 1; None = there is none."""
    started_at: float
    """Unix time in seconds."""

    def is_stalled(self, timeout_s: float) -> bool:
        """Whether it has work and makes no progress with it."""
        return max(self.step_age_s, self.publish_age_s) > timeout_s


_encoder = msgspec.msgpack.Encoder()
_job_decoder = msgspec.msgpack.Decoder(Job)
_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_hub_decoder = msgspec.msgpack.Decoder(list[JobEvent])


def _decode(decoder: "msgspec.msgpack.Decoder[Any]", payload: bytes) -> Any:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise DecodeError(str(exc), payload) from exc


def encode_job(job: Job) -> bytes:
    return _encoder.encode(job)


def without_request(job: Job) -> Job:
    """What is kept of a job that has ended: enough to word its answer once more."""
    echoes = job.echo and job.prompt_logprobs
    return msgspec.structs.replace(
        job,
        messages=[],
        prompts=job.prompts if echoes else [""] * len(job.prompts),
        tools=[],
        template_arguments={},
        suffix=None,
        grammar=None,
        stop=[],
        sampling=Sampling(),
        is_over=True,
    )


def decode_job(payload: bytes) -> Job:
    job: Job = _decode(_job_decoder, payload)
    if job.version != VERSION:
        raise DecodeError(f"job of version {job.version}, this process speaks {VERSION}", payload)
    return job


def encode_event(event: Event) -> bytes:
    return _encoder.encode(event)


def decode_event(payload: bytes) -> Event:
    event: Event = _decode(_event_decoder, payload)
    return event


def encode_hub_message(events: list[tuple[str, bytes]], published_at: float) -> bytes:
    """Pack (job id, encoded event) pairs into one pub/sub message without encoding them again."""
    return _encoder.encode(
        [_RawJobEvent(job_id, msgspec.Raw(event), published_at) for job_id, event in events]
    )


def decode_hub_message(payload: bytes) -> list[JobEvent]:
    events: list[JobEvent] = _decode(_hub_decoder, payload)
    return events


def encode_replica(record: ReplicaRecord) -> bytes:
    return _encoder.encode(record)
