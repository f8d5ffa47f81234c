"""Files with secrets, which only their owner may read."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace a file. Its mode is 0600 from its creation on. Raises OSError."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
