"""What `docker build` would see of the checkout."""

import fnmatch
import shutil
from pathlib import Path

from tests.conftest import ROOT

_LINES = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]


def has(path: Path) -> bool:
    """Whether .dockerignore lets a file of the checkout through: the last line that fits."""
    inside = path.relative_to(ROOT).as_posix()
    is_in = True
    for line in _LINES:
        pattern = line.removeprefix("!").removesuffix("/").removeprefix("**/")
        if fnmatch.fnmatch(inside, pattern) or inside.startswith(f"{pattern}/"):
            is_in = line.startswith("!")
    return is_in


def lay_out(folder: Path) -> None:
    """Copy what the image has of the checkout."""
    for line in _LINES:
        if line.startswith("!"):
            source = ROOT / line[1:]
            for path in [source] if source.is_file() else source.rglob("*"):
                if path.is_file() and has(path):
                    target = folder / path.relative_to(ROOT)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
