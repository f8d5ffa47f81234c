"""How much memory a model will take, before it is loaded: reads file headers, nothing else.

Runs in the node agent. Conservative: at most a quarter above what a replica takes, never below
(docs/operations.md has the table; `python -m bench.estimates` measures it again).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.agent import embedding_memory, exllamav2_memory, llamacpp_memory
from worker.agent.footprint import Estimate, Footprint

__all__ = ["Estimate", "Fit", "estimate", "what_fits"]

_CONTEXT_STEP = 256
_READERS: dict[str, dict[str, Callable[[Path], Footprint]]] = {
    "generate": {
        "llamacpp": llamacpp_memory.read_footprint,
        "exllamav2": exllamav2_memory.read_footprint,
    },
    "embed": {"llamacpp": embedding_memory.read_footprint},
}
"""By what the replica is to do, then by engine."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What would fit into the memory that is free. None: nothing does."""

    context_length: int | None
    """The largest multiple of 256 tokens, with the slots as asked for; no more than the model
    was trained on, unless more was asked for."""
    slots: int | None
    """The largest number, with the context as asked for; no more than the engine takes."""


def estimate(
    path: Path,
    *,
    engine: str,
    context_length: int,
    slots: int,
    quant: str,
    task: str = "generate",
) -> Estimate:
    """Memory of a replica: RAM with llamacpp, GPU memory with exllamav2.

    `quant` is the precision of the KV cache: f16, q8_0, q4_0 (llamacpp); fp16, q8, q6, q4
    (exllamav2). Raises ModelFileError for files that the engine cannot load, ValueError for an
    engine or a precision that does not exist.
    """
    _check_counts(context_length, slots)
    footprint = _read(path, engine, task)
    return footprint.estimate(context_length=context_length, slots=slots, quant=quant)


def what_fits(
    path: Path,
    *,
    engine: str,
    context_length: int,
    slots: int,
    quant: str,
    free_bytes: int,
    task: str = "generate",
) -> Fit:
    """The largest context and the largest number of slots, one at a time. Raises as `estimate`."""
    _check_counts(context_length, slots)
    footprint = _read(path, engine, task)

    def fits(context: int, num_slots: int) -> bool:
        found = footprint.estimate(context_length=context, slots=num_slots, quant=quant)
        return found.total_bytes <= free_bytes

    longest = max(context_length, footprint.trained_context_length, _CONTEXT_STEP)
    steps = _largest(longest // _CONTEXT_STEP, lambda n: fits(n * _CONTEXT_STEP, slots))
    num_slots = _largest(max(slots, footprint.max_slots), lambda n: fits(context_length, n))
    return Fit(steps * _CONTEXT_STEP if steps else None, num_slots or None)


def _read(path: Path, engine: str, task: str) -> Footprint:
    readers = _READERS[task]
    reader = readers.get(engine)
    if reader is None:
        raise ValueError(f"there is no engine {engine!r}: {', '.join(readers)} exist")
    return reader(path)


def _largest(limit: int, is_true: Callable[[int], bool]) -> int:
    """The largest n of 1 … limit, by halving; 0 without one. True for n means true below it."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_true(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _check_counts(context_length: int, slots: int) -> None:
    if context_length < 1 or slots < 1:
        raise ValueError(f"context_length = {context_length}, slots = {slots}: at least 1 each")
