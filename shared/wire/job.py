"""The wire messages: the whole border between the web tier and the replicas.

A `Job` goes one way, `Event`s come back. Both are frozen, typed, versioned and encoded as
MessagePack, here and nowhere else. Every event of a job carries a sequence number that starts
at 0 and has no holes, and the attempt that produced it.
"""

from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from shared.wire.version import VERSION


class JobKind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    TOKENIZER_INFO = "tokenizer_info"


class Priority(StrEnum):
    """The order of waiting jobs, first to last."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"
    BATCH = "batch"


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
    """For the role tool: the id of the call that it answers."""
    reasoning: str | None = None
    """For the role assistant: the reasoning before `content`."""


class Tool(Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON schema of the arguments; empty = any object."""
    is_strict: bool = False
    """A schema with keywords that cannot be enforced is refused; otherwise they are ignored."""


class ToolChoice(StrEnum):
    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


class Grammar(Struct, frozen=True):
    """What the whole completion must match."""

    kind: GrammarKind
    source: str
    """JSON text of the schema, the regular expression, or the Lark grammar."""
    param: str = "response_format"
    """The request parameter with the grammar, for error messages."""


class Sampling(Struct, frozen=True):
    """How tokens are sampled. The defaults are OpenAI's: an unchanged distribution."""

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
    """Choice i of a job samples with seed + i. None = a random seed."""
    logit_bias: dict[int, float] = {}
    """Token id → added to its logit."""


class AnswerOptions(Struct, frozen=True, kw_only=True):
    """What the web tier needs to format the answer, also for a reader that resumes later."""

    wants_usage: bool = False
    """Of a stream: whether it ends with a chunk with the usage."""
    wants_logprobs: bool = False
    num_wanted: int = 1
    """The answer has this many of `Job.num_choices`: the best ones."""
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
    """For `JobKind.TOKENIZE`: return the texts of the tokens, too."""
    add_special: bool = True
    """For `JobKind.TOKENIZE`: add the tokens that begin and end every text."""
    tools: list[Tool] = []
    tool_choice: ToolChoice = ToolChoice.AUTO
    tool_name: str | None = None
    """With `ToolChoice.REQUIRED`: the tool to call; None = any."""
    parallel_tool_calls: bool = True
    template_arguments: dict[str, Any] = {}
    """Further variables of the chat template, such as `enable_thinking`."""
    continues: bool = False
    """For `JobKind.CHAT`: the completion continues the last message, which is the assistant's."""
    suffix: str | None = None
    """For `JobKind.COMPLETION`: the text after the completion (fill in the middle)."""
    echo: bool = False
    """For `JobKind.COMPLETION`: the answer begins with the prompt."""
    prompt_logprobs: bool = False
    """With `echo` and `logprobs`: report log probabilities of the prompt, too."""
    num_choices: int = 1
    """Choices per prompt. Choice index = prompt index * num_choices + i."""
    max_tokens: int | None = None
    """None = up to the end of the context. 0 = only read the prompt."""
    min_tokens: int = 0
    """No end token is sampled before this many tokens; stop strings still end the text."""
    ignore_eos: bool = False
    """End tokens do not end the completion."""
    logprobs: int | None = None
    """Alternatives to report for each token; None = no log probabilities at all."""
    grammar: Grammar | None = None
    stop: list[str] = []
    sampling: Sampling = Sampling()
    reply_channel: str = ""
    """Not used. Replicas of earlier releases cannot decode a job without it."""
    priority: Priority = Priority.INTERACTIVE
    owner: str = "anonymous"
    """The sender, by its key or token: limits, turns in the queue and access to the answer are per
    owner."""
    charged_tokens: int = 0
    """Tokens charged to the owner's tokens per minute at admission."""
    answer: AnswerOptions = AnswerOptions()
    is_over: bool = False
    """The job has ended: the fields left are enough to format its answer, not to run it."""
    created_at: float
    """Unix time in seconds."""
    deadline_at: float
    """Unix time in seconds after which the job is not run or continued."""


def without_request(job: Job) -> Job:
    """Drop what only running the job needs. The rest formats its answer for later readers."""
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
