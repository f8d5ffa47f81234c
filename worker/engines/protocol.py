"""What an engine is: submit, step, cancel.

Thread rule: one thread, the engine loop, owns an engine and calls all its methods; only
`tokenize` and the read-only properties may be called from others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.messages import FinishReason, Sampling


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
        """Sequences that could be submitted now."""

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

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence into the batch. Needs a free slot."""

    def step(self) -> list[StepResult]:
        """Advance all sequences by one step: a piece of prefill, one token for each other."""

    def cancel(self, key: tuple[str, int]) -> None:
        """Free the sequence's slot at once. An unknown key is ignored. No result follows."""

    @property
    def has_work(self) -> bool: ...

    def close(self) -> None:
        """Free the model."""
