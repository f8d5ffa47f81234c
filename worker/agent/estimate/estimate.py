"""How much memory a replica of a model will take, from the headers of the model's files.

Runs in the node agent before a load. The estimate is conservative: never below what a replica
takes and at most a quarter above (docs/models.md has the table, `python -m bench.estimates`
measures it again).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shared.errors import InvalidModel, SettingsError
from shared.model_spec import ModelSpec
from shared.settings.fields import Settings
from worker.agent.estimate import embedding, exllamav2, llamacpp
from worker.agent.estimate.base import Estimate, MemoryModel, mib_text
from worker.agent.model_files.errors import ModelFileError

_CONTEXT_STEP = 256
_READERS: dict[str, dict[str, Callable[[Path], MemoryModel]]] = {
    "generate": {"llamacpp": llamacpp.read_memory_model, "exllamav2": exllamav2.read_memory_model},
    "embed": {"llamacpp": embedding.read_memory_model},
}
"""By the task of the replica, then by engine."""


@dataclass(frozen=True, slots=True)
class FittingSizes:
    """The sizes that fit into the free memory; None where no size does."""

    context_length: int | None
    """The largest multiple of 256 tokens with the given slots. At most the trained length, or
    the given context if that is longer."""
    slots: int | None
    """The largest number with the given context. At most the engine's limit."""


def estimate_of(settings: Settings, spec: ModelSpec, path: Path) -> Estimate:
    """Estimate the memory of a replica, with its draft model. Raises InvalidModel."""
    try:
        needed = estimate(path, spec)
        if spec.draft and spec.draft != "ngram":
            draft = settings.resolve_weights(spec.name, spec.draft)
            needed = needed.with_draft(estimate(draft, spec))
        return needed
    except SettingsError as exc:
        raise InvalidModel(str(exc), param="draft") from exc
    except ModelFileError as exc:
        raise InvalidModel(f"{spec.name}: {exc.reason}", param="path") from exc
    except (ValueError, OSError) as exc:
        raise InvalidModel(f"{spec.name}: {exc}", param="quant") from exc


def advice(spec: ModelSpec, path: Path, needed: Estimate, free_bytes: int) -> str:
    """Say what the memory is for and which smaller sizes would fit. Raises as `estimate`."""
    fit = what_fits(path, spec, free_bytes)
    parts = (
        f"weights {mib_text(needed.weights_bytes)}, KV cache {mib_text(needed.kv_cache_bytes)} for "
        f"{spec.slots} slots of {spec.context_length} tokens"
    )
    choices = []
    if fit.context_length is not None:
        choices.append(f"context_length {fit.context_length} with {spec.slots} slots")
    if fit.slots is not None:
        choices.append(f"{fit.slots} slots with context_length {spec.context_length}")
    fits = f"What would fit: {', or '.join(choices)}." if choices else "No smaller context fits."
    return f"({parts}.) {fits}"


def estimate(path: Path, spec: ModelSpec) -> Estimate:
    """Estimate RAM (llamacpp) or GPU memory (exllamav2) of one model, without its draft.

    `spec` names an engine and a task, no `auto`. `spec.quant` is the precision of the KV cache:
    f16, q8_0, q4_0 (llamacpp); fp16, q8, q6, q4 (exllamav2). Raises ModelFileError for files that
    the engine cannot load, ValueError for an unknown engine or precision, OSError.
    """
    slots = spec.slots
    if spec.cache_tokens:
        # A limited cache holds fewer full contexts than slots; a begun one counts whole.
        slots = max(1, min(slots, -(-spec.cache_tokens // spec.context_length)))
    model = _read(path, spec)
    return model.estimate(context_length=spec.context_length, slots=slots, quant=spec.quant)


def what_fits(path: Path, spec: ModelSpec, free_bytes: int) -> FittingSizes:
    """Find the largest context and the largest number of slots, each with the other as given.
    Raises as `estimate`."""
    model = _read(path, spec)

    def fits(context: int, num_slots: int) -> bool:
        found = model.estimate(context_length=context, slots=num_slots, quant=spec.quant)
        return found.total_bytes <= free_bytes

    longest = max(spec.context_length, model.trained_context_length, _CONTEXT_STEP)
    steps = _largest(longest // _CONTEXT_STEP, lambda n: fits(n * _CONTEXT_STEP, spec.slots))
    most_slots = max(spec.slots, model.max_slots)
    num_slots = _largest(most_slots, lambda n: fits(spec.context_length, n))
    return FittingSizes(steps * _CONTEXT_STEP if steps else None, num_slots or None)


def _read(path: Path, spec: ModelSpec) -> MemoryModel:
    context_length, slots = spec.context_length, spec.slots
    if context_length < 1 or slots < 1:
        raise ValueError(f"context_length = {context_length}, slots = {slots}: at least 1 each")
    if spec.engine not in _READERS[spec.task]:
        engines = ", ".join(_READERS[spec.task])
        raise ValueError(f"there is no engine {spec.engine!r}: {engines} exist")
    return _read_once(path, path.stat().st_mtime_ns, spec.engine, spec.task)


@lru_cache(maxsize=64)
def _read_once(path: Path, _changed_at_ns: int, engine: str, task: str) -> MemoryModel:
    """Read the headers again only after a change: a load that waits for memory asks often."""
    return _READERS[task][engine](path)


def _largest(limit: int, is_true: Callable[[int], bool]) -> int:
    """Find the largest n of 1 … limit by halving; 0 without one. True for n is true below it."""
    # Invariant: `low` is true (or 0), and nothing above `high` is. The middle is rounded up, so
    # that `low = middle` makes progress when the two are neighbours.
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if is_true(middle):
            low = middle
        else:
            high = middle - 1
    return low
