"""What an engine is: submit, step, cancel.

Thread rule: one thread, the engine loop, owns an engine and calls all its methods; only
`vocabulary`, `check` and the read-only properties may be used from others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shared.denylist import NO_OUTPUT_RULES, OutputRules
from shared.errors import EngineError, LlmisError
from shared.messages import Filtered, FinishReason, Grammar, Logprob, Sampling, TokenLogprobs
from worker.text import TextAssembler


class EngineFatal(EngineError):
    """The engine cannot go on in this process: it has to end, and another one to start.

    Clients see an `EngineError`; that the process ends is between engine, loop and replica.
    """

    def __init__(self, message: str, suspects: Mapping[str, int] | None = None) -> None:
        """`suspects`: fingerprint of each request that was running → how often it has been when
        the engine failed. The next process is told of them."""
        super().__init__(message)
        self.suspects = dict(suspects or {})


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
    task: str = "generate"
    """`generate` or `embed`."""
    suspects: Mapping[str, int] = field(default_factory=dict)
    """`EngineFatal.suspects` of the processes before this one."""


@dataclass(slots=True)
class Sequence:
    """One sequence to generate: a choice of a job."""

    key: tuple[str, int]
    """(job id, choice index), unique among the live sequences."""
    prompt: list[int]
    """Token ids, at least one and fewer than the context length; as many for an engine that
    embeds."""
    max_tokens: int
    """Prompt and completion together fit the context. 0 = read the prompt only, always so for an
    engine that embeds."""
    sampling: Sampling
    stop: list[str] = field(default_factory=list)
    strip_leading_space: bool = False
    """Drop one space at the start of the text: the one that a chat template leaves off."""
    logprobs: int | None = None
    """Number of alternatives to report for each token; None = no log probabilities at all."""
    grammar: Grammar | None = None
    compiled: Any = None
    """The grammar as the engine's `check` has compiled it: `submit` needs it."""
    min_tokens: int = 0
    """No end token is drawn before so many tokens; stop strings still end the text."""
    ignore_eos: bool = False
    """Go on to `max_tokens` whatever end token is drawn."""
    shown_tokens: frozenset[int] = frozenset()
    """Control tokens whose own text is part of the text, such as the marks of a tool call."""
    prompt_logprobs: bool = False
    """Report the log probabilities of the prompt, too. Needs `logprobs`."""
    produced: list[int] = field(default_factory=list)
    """Tokens of the completion that an earlier attempt has drawn, and whose results are out: the
    engine goes on behind them as if it had drawn them itself. Fewer than `max_tokens`."""

    rules: OutputRules | None = None
    """Of the denylist; None = its text is not looked at."""
    seen: int | None = None
    """With `produced`: see `Filtered.seen`. None = it was not looked at."""

    @property
    def known_tokens(self) -> list[int]:
        """What is there to read before the next token is drawn."""
        return self.prompt + self.produced if self.produced else self.prompt

    @property
    def num_left(self) -> int:
        """Tokens that may still be drawn."""
        return self.max_tokens - len(self.produced)


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
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the next prompt tokens, from the second one on, if the sequence asked for them."""
    embedding: bytes | None = None
    """With the finish reason, from an engine that embeds: float32, little-endian."""
    filtered: Filtered | None = None
    """With `token_ids`: what the denylist has done; None = there is none."""
    error: LlmisError | None = None
    """The sequence failed, alone, and is not in the batch any more. Its job ends with this."""


class FillInMiddle(NamedTuple):
    """Ids of the tokens that mark what is before a gap, what is behind it, and the gap."""

    prefix: int
    suffix: int
    middle: int


class Vocabulary(Protocol):
    """Text to token ids and back. Thread-safe."""

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

    @property
    def control_tokens(self) -> dict[str, int]:
        """Text → id of the tokens that stand for no text: marks of turns, tool calls and such."""

    @property
    def fill_in_middle(self) -> FillInMiddle | None:
        """None = the model was not trained to fill gaps."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """`add_special` puts the begin token in front where the model wants one;
        `parse_special` reads control tokens in the text as such. Raises EngineError."""

    def name(self, token: int) -> bytes:
        """A control token's own text, any other's piece."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; control tokens and unknown ids add none."""


def piece_in(vocabulary: Vocabulary, sequence: Sequence, token: int) -> bytes:
    """The bytes that a token adds to the text of this sequence."""
    if token in sequence.shown_tokens:
        return vocabulary.name(token)
    return vocabulary.piece(token)


def logprob_in(vocabulary: Vocabulary, sequence: Sequence, token: int, logprob: float) -> Logprob:
    """What is reported of a token in this sequence."""
    piece = piece_in(vocabulary, sequence, token)
    return Logprob(token, logprob, piece, b"" if piece else vocabulary.name(token))


def assembler_of(vocabulary: Vocabulary, sequence: Sequence) -> tuple[TextAssembler, str]:
    """Make the assembler of a sequence, and the text that what is produced has given so far."""
    pieces = [piece_in(vocabulary, sequence, token) for token in sequence.produced]
    assembler = _assembler(sequence, sequence.rules)
    text = "".join(assembler.push(piece) for piece in pieces if not assembler.is_stopped)
    if not pieces or assembler.seen == sequence.seen:
        assembler.report()
        return assembler, text
    # It was filtered by other rules than those of today: what is out stays out.
    assembler = _assembler(sequence, None)
    text = "".join(assembler.push(piece) for piece in pieces)
    num_out = len(text) if sequence.seen is None else sequence.seen - assembler.num_stripped
    rules = sequence.rules or NO_OUTPUT_RULES
    assembler.filter_behind(rules, text[:num_out], text[num_out:])
    return assembler, text[:num_out]


def _assembler(sequence: Sequence, rules: OutputRules | None) -> TextAssembler:
    return TextAssembler(
        sequence.stop, strip_leading_space=sequence.strip_leading_space, rules=rules
    )


def detokenize(vocabulary: Vocabulary, token_ids: list[int]) -> str:
    """The text of token ids, control tokens by their names. Bytes that are no text: U+FFFD."""
    return b"".join(map(vocabulary.name, token_ids)).decode("utf-8", "replace")


class Engine(Protocol):
    name: str
    embeds: bool
    """Its sequences end with an `embedding` and no token is drawn; otherwise it generates."""

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
    def kv_usage(self) -> float | None:
        """Part of the KV cache that the sequences in the batch hold, 0 to 1; None = there is
        none. Thread-safe."""

    @property
    def device_bytes(self) -> dict[str, int]:
        """GPU → memory that this process holds there. Thread-safe."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the model's own files."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for what this engine cannot do, or what is wrong with the
        sequence. Compiles its grammar. May take time: it runs before the sequence reaches the
        loop. Thread-safe."""

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
