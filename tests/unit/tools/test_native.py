"""The build of llama.cpp for this host's processor: when a wheel is used, and when not."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tools import native, native_check

_CPUINFO = (
    "model name\t: A\nflags\t\t: fpu avx2 {more}\nmodel name\t: A\nflags\t\t: fpu avx2 {more}\n"
)


def _make_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        """An empty one."""


class Commands:
    """Takes note of the commands in place of running them. `fails` names those that fail."""

    def __init__(self, fails: str = "none") -> None:
        self.fails = fails
        self.run: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[bytes]":
        self.run.append(command)
        if "wheel" in command and self.fails != "wheel":
            folder = Path(command[command.index("-w") + 1])
            folder.mkdir(parents=True)
            _make_wheel(folder / "xllamacpp-1.2-cp310-abi3-linux_x86_64.whl")
        return subprocess.CompletedProcess(command, int(self.fails in command))

    @property
    def installed(self) -> list[str]:
        return [str(command[-1]) for command in self.run if "install" in command]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the wheel for this processor is to be."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(_CPUINFO.format(more="avx512f"))
    monkeypatch.setattr(native, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(native, "_WHEELS", tmp_path / "wheels")
    monkeypatch.setattr(native, "_PROGRAMS", (sys.executable,))
    return native.wheel_folder(native.pinned_version(), cpuinfo.read_text())


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(subprocess, "run", commands)
    return commands


def _built(folder: Path) -> Path:
    folder.mkdir(parents=True)
    wheel = folder / "xllamacpp-1.2-cp310-abi3-linux_x86_64.whl"
    _make_wheel(wheel)
    return wheel


def test_a_wheel_is_for_one_version_and_one_processor(folder: Path) -> None:
    version, other = native.pinned_version(), _CPUINFO.format(more="amx_tile")
    same = native.wheel_folder(version, _CPUINFO.format(more="avx512f"))
    assert same == folder
    assert native.wheel_folder(version, other) != folder
    assert native.wheel_folder("0.0", _CPUINFO.format(more="avx512f")) != folder


def test_it_is_built_checked_and_used(folder: Path, commands: Commands) -> None:
    assert native.main([]) == 0
    build, check, install = commands.run[-3:]
    assert build[-1] == f"xllamacpp=={native.pinned_version()}"
    assert build[build.index("--no-binary") + 1] == "xllamacpp"
    assert Path(install[-1]).parent == folder
    assert check[1:] == ["-m", "tools.native_check"]


def test_it_is_built_once(folder: Path, commands: Commands) -> None:
    wheel = _built(folder)
    assert native.main([]) == 0
    assert commands.installed == [str(wheel)]
    assert len(commands.run) == 2


def test_a_start_uses_it_and_builds_none(folder: Path, commands: Commands) -> None:
    assert native.main(["--if-built"]) == 0
    assert commands.run == []
    wheel = _built(folder)
    assert native.main(["--if-built"]) == 0
    assert commands.installed == [str(wheel)]


@pytest.mark.parametrize("arguments", [[], ["--if-built"]])
def test_one_that_does_not_run_replaces_nothing(
    folder: Path, commands: Commands, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _built(folder)
    commands.fails = "tools.native_check"
    assert native.main(arguments) == (0 if arguments else 1)
    assert commands.installed == []
    assert "does not run here" in capsys.readouterr().err


def test_a_build_that_fails_names_its_log(
    folder: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.fails = "wheel"
    assert native.main([]) == 1
    assert commands.installed == []
    assert str(folder.parent / "build.log") in capsys.readouterr().err


def test_the_wheel_of_pypi_passes_the_check() -> None:
    assert native_check.main() == 0


def test_a_missing_compiler_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "_PROGRAMS", ("no-such-compiler",))
    assert native.main([]) == 1
    assert "no-such-compiler not found" in capsys.readouterr().err
    assert not folder.exists()
