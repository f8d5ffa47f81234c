"""`make native`: builds llama.cpp for this host's processor and installs it into the environment.

The wheel of PyPI runs on every x86-64 processor since 2013 and leaves out what newer ones have
(AVX-512, AMX). The source of the same version is built once into `var/wheels/<digest>`; the digest
stands for the version and the processor: a host with another one does not install it.
`make run` installs it again into an environment that was made anew.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_WHEELS = _ROOT / "var" / "wheels"
_CPUINFO = Path("/proc/cpuinfo")
_PIN = re.compile(r"^xllamacpp==(\S+)", re.MULTILINE)
_PROGRAMS = ("cmake", "c++")
_CMAKE_ARGS = (
    # Parts of llama.cpp's own server, which llmis does not use. They would need Rust and Go.
    "-DLLAMA_LLGUIDANCE=OFF -DLLAMA_BUILD_BORINGSSL=OFF "
    f'"-DCMAKE_CXX_FLAGS=-include {_ROOT}/tools/amx_tile_config.h"'
)
_CHECK = ("-m", "tools.native_check")


class NativeError(Exception):
    """The message says what to do."""


def pinned_version() -> str:
    found = _PIN.search((_ROOT / "requirements.txt").read_text())
    assert found, "requirements.txt pins xllamacpp"
    return found[1]


def wheel_folder(version: str, cpuinfo: str) -> Path:
    """The folder of the wheel of one version for the processor that `/proc/cpuinfo` describes."""
    described = re.findall(r"^(?:flags|Features|model name)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    parts = [version, platform.machine(), platform.python_version(), *sorted(set(described))]
    return _WHEELS / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def built_wheel(folder: Path) -> Path | None:
    return next(iter(folder.glob("xllamacpp-*.whl")), None)


def build(folder: Path, version: str) -> Path:
    """Build the wheel; return its path. Takes minutes. Raises NativeError."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NativeError(
            f"{' and '.join(missing)} not found. On Debian: apt install cmake g++ libgomp1"
        )
    print(f"llmis: building llama.cpp of xllamacpp {version} for this processor (minutes)")
    partial = folder.with_suffix(".partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "build.log").open("wb") as log:
        options = (
            "-v",
            "--no-deps",
            "--no-cache-dir",
            "--no-binary",
            "xllamacpp",
            "-w",
            str(partial),
        )
        status = subprocess.run(
            [*_pip("wheel"), *options, f"xllamacpp=={version}"],
            env={**os.environ, "CMAKE_ARGS": _CMAKE_ARGS},
            stdout=log,
            stderr=log,
        ).returncode
    if status:
        raise NativeError(f"the build failed; its log: {log.name}")
    partial.rename(folder)
    wheel = built_wheel(folder)
    assert wheel, "pip wheel has made one"
    return wheel


def install(wheel: Path) -> None:
    """Install the wheel if the engine accepts it. Raises NativeError: nothing has been replaced."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        found_first = {**os.environ, "PYTHONPATH": folder}
        status = subprocess.run([sys.executable, *_CHECK], env=found_first).returncode
    if status:
        raise NativeError(f"{wheel} does not run here and is not used; remove it to build it again")
    subprocess.run([*_pip("install"), "-q", "--no-deps", "--force-reinstall", wheel], check=True)
    print(f"llmis: llama.cpp is built for this processor ({wheel})")


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--disable-pip-version-check"]


def main(arguments: list[str]) -> int:
    """With `--if-built` only a wheel that is there is installed. Returns the exit status."""
    version = pinned_version()
    folder = wheel_folder(version, _CPUINFO.read_text() if _CPUINFO.exists() else "")
    wheel = built_wheel(folder)
    try:
        if wheel is None:
            if "--if-built" in arguments:
                return 0
            wheel = build(folder, version)
        install(wheel)
    except NativeError as exc:
        print(f"llmis: {exc}", file=sys.stderr)
        return 0 if "--if-built" in arguments else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
