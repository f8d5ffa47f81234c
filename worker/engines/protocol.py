"""What an engine is: submit, step, cancel.

Thread rule: one thread, the engine loop, owns an engine and calls all its methods; only
`tokenize` and the read-only properties may be called from others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from shared.errors import EngineError, LlmisError
from shared.messages import FinishReason, Sampling


class EngineFatal(EngineError):
    """The engine cannot go on in this process: it has to end, and another one to start.

    Clients see an `EngineError`; that the process ends is between engine, loop and replica.
    """


@dataclass(frozen=True, slots=True)
class Speculation:
    """Guess tokens ahead and let the model check several of them in one step."""

    draft_path: Path | None = None
    """Folder of a small model with the same vocabulary that guesses; None = n-grams of the
    text so far."""
    num_tokens: int = 4
    """Guesses a step, at least 1."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to load a model."""

    path: Path
    context_length: int
    """Tokens per sequence, prompt and completion together."""
    slots: int
    """Sequences generated at the same time."""
    threads: int
    """Compute threads, at least 1."""
    device: str = "auto"
    quant: str = "f16"
    """Precision of the KV cache, in the engine's own words."""
    on_progress: Callable[[float], None] = lambda _: None
    """Told how much of the weights is read, 0 to 1. Called by the loading thread, often."""
    cache_tokens: int = 0
    """Tokens of the KV cache, all sequences together; 0 = slots × context_length."""
    speculation: Speculation | None = None


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a completion has to match as a whole."""

    kind: GrammarKind
    source: str
    """JSON text of the schema, the regular expression, or the Lark grammar."""


@dataclass(frozen=True, slots=True)
class Logprob:
    token_id: int
    logprob: float
    """Natural logarithm of the probability."""
    piece: bytes
    """The bytes that the token adds to the text; they may be part of a character."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A drawn token in the model's own distribution: before temperature, penalties, bias,
    truncation and grammar."""

    chosen: Logprob
    top: list[Logprob]
    """The most probable tokens, best first; the chosen one need not be among them."""


@dataclass(slots=True)
class Sequence:
    """One sequence to generate: a choice of a job."""

    key: tuple[str, int]
    """(job id, choice index), unique among the live sequences."""
    prompt: list[int]
    """Token ids, at least one and fewer than the context length."""
    max_tokens: int
    """At least 1; prompt and completion together fit the context."""
    sampling: Sampling
    stop: list[str] = field(default_factory=list)
    strip_leading_space: bool = False
    """Drop one space at the start of the text: the one that a chat template leaves off."""
    logprobs: int | None = None
    """Number of alternatives to report for each token; None = no log probabilities at all."""
    grammar: Grammar | None = None
    min_tokens: int = 0
    """No end token is drawn before so many tokens; stop strings still end the text."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever end token is drawn."""


@dataclass(slots=True)
class StepResult:
    """What one step did for one sequence."""

    key: tuple[str, int]
    text: str = ""
    """Text that is safe to show: whole characters, no part of a stop string."""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prefilled_tokens: int = 0
    """While the prompt is read: how many of its tokens are done. 0 = nothing new."""
    cached_tokens: int = 0
    """With `prefilled_tokens`: how many of these came from the KV cache."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One for each of `token_ids`, if the sequence asked for them."""
    error: LlmisError | None = None
    """The sequence failed, alone, and is not in the batch any more. Its job ends with this."""


class Engine(Protocol):
    name: str

    @property
    def device(self) -> str:
        """The device that holds the weights."""

    @property
    def context_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def free_slots(self) -> int:
        """Slots that are not taken. Thread-safe."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the model's own files."""

    @property
    def max_token_bytes(self) -> int:
        """A token stands for at most so many bytes of text."""

    @property
    def adds_bos(self) -> bool:
        """Whether tokenizing with `add_special` puts the begin token in front."""

    @property
    def bos_text(self) -> str:
        """Text of the begin-of-sequence token, for templates; empty if the model has none."""

    @property
    def eos_text(self) -> str: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Turn text into token ids. Thread-safe."""

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for what this engine cannot do, or what is wrong with the
        sequence. May take time: it runs before the sequence reaches the loop. Thread-safe."""

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether `submit` would take the sequence now: a slot is free, and whatever else it
        needs. True when nothing runs, also for one that can never be taken: `submit` says
        why."""

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence into the batch. Needs `can_admit`. Raises LlmisError when this one
        cannot be run; the others are not touched by that."""

    def step(self) -> list[StepResult]:
        """Advance all sequences by one step: a piece of prefill, one token for each other.

        Raises EngineError when the step failed: no sequence is in the batch any more, but the
        engine takes new ones. Raises EngineFatal when it will not."""

    def cancel(self, key: tuple[str, int]) -> None:
        """Free the sequence's slot at once. An unknown key is ignored. No result follows."""

    @property
    def has_work(self) -> bool: ...

    def close(self) -> None:
        """Free the model."""
