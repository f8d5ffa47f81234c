"""Files that only their owner may read: what they hold are secrets."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write a file anew, with a mode of 0600 from its first moment on. Raises OSError."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
