"""The error of the readers of model files (GGUF, safetensors), and the size of such a file."""

from pathlib import Path


class ModelFileError(Exception):
    """A model's files are missing, damaged or of a kind that the engine does not run. `reason` is
    one sentence for the operator who named the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def file_size(path: Path) -> int:
    """Size of a regular file in bytes. Raises ModelFileError."""
    try:
        if not path.is_file():
            raise ModelFileError(f"there is no file at {path}")
        return path.stat().st_size
    except (OSError, ValueError) as exc:
        # ValueError: a null byte in the path.
        raise ModelFileError(f"{path} cannot be read: {exc}") from exc
