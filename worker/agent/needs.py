"""What a model needs by its files' headers, and what would fit instead."""

from functools import lru_cache
from pathlib import Path

from shared.errors import InvalidModel, SettingsError
from shared.lifecycle import ModelSpec
from shared.settings import Settings
from worker.agent.estimate import Estimate, estimate, what_fits
from worker.agent.model_file import ModelFileError


def estimate_of(settings: Settings, spec: ModelSpec, path: Path) -> Estimate:
    """The memory that a replica of the model needs. Raises InvalidModel."""
    try:
        needed = _estimate(path, spec)
        if spec.draft and spec.draft != "ngram":
            draft = settings.resolve_weights(spec.name, spec.draft)
            needed = needed.with_draft(_estimate(draft, spec))
        return needed
    except SettingsError as exc:
        raise InvalidModel(str(exc), param="draft") from exc
    except ModelFileError as exc:
        raise InvalidModel(f"{spec.name}: {exc.reason}", param="path") from exc
    except (ValueError, OSError) as exc:
        raise InvalidModel(f"{spec.name}: {exc}", param="quant") from exc


def _estimate(path: Path, spec: ModelSpec) -> Estimate:
    slots = spec.slots
    if spec.cache_tokens:  # fewer full contexts than slots
        slots = max(1, min(slots, -(-spec.cache_tokens // spec.context_length)))
    changed_at_ns = path.stat().st_mtime_ns
    sizes = (spec.context_length, slots, spec.quant)
    return _estimated(path, changed_at_ns, spec.engine, *sizes, spec.task)


@lru_cache(maxsize=64)
def _estimated(
    path: Path,
    _changed_at_ns: int,
    engine: str,
    context_length: int,
    slots: int,
    quant: str,
    task: str,
) -> Estimate:
    """The estimate of files as they are now: a load that waits for room asks again and again."""
    return estimate(
        path, engine=engine, context_length=context_length, slots=slots, quant=quant, task=task
    )


def advice(spec: ModelSpec, path: Path, needed: Estimate, free_bytes: int) -> str:
    """What the memory is for, and which smaller sizes would fit."""
    fit = what_fits(
        path,
        engine=spec.engine,
        context_length=spec.context_length,
        slots=spec.slots,
        quant=spec.quant,
        free_bytes=free_bytes,
        task=spec.task,
    )
    parts = (
        f"weights {_mib(needed.weights_bytes)}, KV cache {_mib(needed.kv_cache_bytes)} for "
        f"{spec.slots} slots of {spec.context_length} tokens"
    )
    choices = []
    if fit.context_length is not None:
        choices.append(f"context_length {fit.context_length} with {spec.slots} slots")
    if fit.slots is not None:
        choices.append(f"{fit.slots} slots with context_length {spec.context_length}")
    fits = f"What would fit: {', or '.join(choices)}." if choices else "No smaller context fits."
    return f"({parts}.) {fits}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
