"""The interface of an engine: submit, step, cancel. One thread, the engine loop, owns an engine and
calls its methods. Other threads may use only `vocabulary`, `check` and the read-only properties."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shared.errors import EngineError
from worker.sequence import Sequence, Speculation, StepResult
from worker.vocabulary import Vocabulary


class EngineFatal(EngineError):
    """The engine cannot continue in this process: the process has to end and be restarted. Clients
    see an `EngineError`; only the engine, the loop and the replica know this class."""

    def __init__(self, message: str, poison: Mapping[str, int] | None = None) -> None:
        """`poison`: fingerprint of each running request → engine failures it was part of. They
        are handed to the next process."""
        super().__init__(message)
        self.poison = dict(poison or {})


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to load a model."""

    path: Path
    context_length: int
    """Tokens per sequence, prompt and completion together."""
    slots: int
    """Sequences in the batch at the same time."""
    threads: int
    """Compute threads, at least 1."""
    device: str = "auto"
    quant: str = "f16"
    """Precision of the KV cache, by the engine's own name."""
    on_progress: Callable[[float], None] = lambda _: None
    """Called by the loading thread, often, with the share of the weights read, 0 to 1."""
    cache_tokens: int = 0
    """Size of the KV cache, all sequences together; 0 = slots × context_length."""
    speculation: Speculation | None = None
    task: str = "generate"
    """`generate` or `embed`."""
    poison: Mapping[str, int] = field(default_factory=dict)
    """`EngineFatal.poison` of earlier processes."""


class Engine(Protocol):
    name: str
    embeds: bool
    """Sequences end with an `embedding`, and no token is drawn. False: it generates text."""

    @property
    def device(self) -> str:
        """The device that holds the weights."""

    @property
    def context_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def free_slots(self) -> int:
        """Thread-safe."""

    @property
    def kv_usage(self) -> float | None:
        """Share of the KV cache held by the sequences in the batch, 0 to 1; None = the engine
        has no KV cache to run out of. Thread-safe."""

    @property
    def device_bytes(self) -> dict[str, int]:
        """GPU → bytes of its memory held by this process. Thread-safe."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template from the model's files."""

    @property
    def tool_use_template(self) -> str | None:
        """The model's other template, for requests with tools; most models have none."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest for a sequence that is wrong or that this engine cannot run.
        Compiles its grammar, which may take time, so call it before the sequence reaches the
        loop. Thread-safe."""

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether `submit` would accept the sequence now: a slot and all else it needs is free.
        Also true for a sequence that can never be accepted, once nothing runs: `submit` then
        raises the reason, and the queue does not stall."""

    def submit(self, sequence: Sequence) -> None:
        """Add a sequence to the batch. Needs `can_admit`. Raises LlmisError when this sequence
        cannot run; the others are not affected."""

    def step(self) -> list[StepResult]:
        """Advance all sequences by one step: a chunk of prefill, or one token each.

        Raises EngineError when the step failed: the batch is empty then, and the engine
        accepts new sequences. Raises EngineFatal when it cannot."""

    def cancel(self, key: tuple[str, int]) -> None:
        """Free the sequence's slot at once. An unknown key is ignored. No result follows."""

    @property
    def has_work(self) -> bool: ...

    def close(self) -> None:
        """Free the model's memory."""
