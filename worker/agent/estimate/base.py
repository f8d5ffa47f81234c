"""What a model takes, split by what it depends on. Both engines' formulas give these."""

from dataclasses import dataclass
from typing import Protocol

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of memory of one replica: RAM (llamacpp) or GPU memory (exllamav2)."""

    weights_bytes: int
    """Tensors, and what the engine keeps beside them for the model alone (vocabulary, copies)."""
    kv_cache_bytes: int
    """The KV cache of all slots, and the states of recurrent layers."""
    scratch_bytes: int
    """Buffers of the computation."""
    process_bytes: int
    """What a replica takes without a model: interpreter, libraries, a GPU's context."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.scratch_bytes + self.process_bytes

    def with_draft(self, draft: "Estimate") -> "Estimate":
        """A second model in the same process."""
        return Estimate(
            self.weights_bytes + draft.weights_bytes,
            self.kv_cache_bytes + draft.kv_cache_bytes,
            self.scratch_bytes + draft.scratch_bytes,
            self.process_bytes,
        )


class Footprint(Protocol):
    """A model's facts, read once from its headers."""

    @property
    def trained_context_length(self) -> int:
        """Tokens; 0 where the header does not say."""

    @property
    def max_slots(self) -> int:
        """The engine takes no more."""

    def estimate(self, *, context_length: int, slots: int, quant: str) -> Estimate:
        """Grows, or stays, with the context and with the slots.

        Raises ValueError for a `quant` that the engine does not know, ModelFileError for one
        that this model's shape rules out.
        """
        ...


def round_up(value: int, step: int) -> int:
    return (value + step - 1) // step * step
