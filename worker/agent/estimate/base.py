"""The memory model that each engine provides: parts of an estimate, and how sizes change them."""

from dataclasses import dataclass
from typing import Protocol

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of memory of one replica: RAM (llamacpp) or GPU memory (exllamav2)."""

    weights_bytes: int
    """Tensors, and what the engine keeps per model (vocabulary, copies)."""
    kv_cache_bytes: int
    """The KV cache of all slots, and the states of recurrent layers."""
    scratch_bytes: int
    """Buffers of the computation."""
    process_bytes: int
    """A replica without a model: interpreter, libraries, a GPU's context."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.scratch_bytes + self.process_bytes

    def with_draft(self, draft: "Estimate") -> "Estimate":
        """Add a second model in the same process."""
        return Estimate(
            self.weights_bytes + draft.weights_bytes,
            self.kv_cache_bytes + draft.kv_cache_bytes,
            self.scratch_bytes + draft.scratch_bytes,
            self.process_bytes,
        )


class MemoryModel(Protocol):
    """A model's sizes, read once from its headers."""

    @property
    def trained_context_length(self) -> int:
        """Tokens; 0 where the header does not say."""

    @property
    def max_slots(self) -> int:
        """The engine's limit."""

    def estimate(self, *, context_length: int, slots: int, quant: str) -> Estimate:
        """Estimate for these sizes. Never smaller for a longer context or more slots.

        Raises ValueError for a `quant` that the engine lacks, ModelFileError for one that this
        model's shape rules out.
        """


def round_up(value: int, step: int) -> int:
    return (value + step - 1) // step * step


def mib_text(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f} MiB"
