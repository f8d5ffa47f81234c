"""Logs are rotated while other processes write them."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared import log_files
from shared.settings.fields import Settings

_WRITER = """
import sys
for number in range(500_000):
    if number % 2_000 == 0:
        print(file=sys.stderr, flush=True)
        sys.stdin.readline()
    sys.stdout.write(f"line {number}\\n")
    sys.stdout.flush()
"""
"""Asks before every 2,000 lines, about 24 kB."""


def _settings(max_bytes: int = 100, kept: int = 2) -> Settings:
    return Settings(log_max_bytes=max_bytes, log_files_kept=kept)


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_log_over_the_limit_becomes_the_first_copy_and_older_ones_move_on(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    for letter in "abcd":
        log.write_text(letter * 101)
        log_files.rotate(log, _settings())
    assert _contents(tmp_path) == {"web.log": "", "web.log.1": "d" * 101, "web.log.2": "c" * 101}


@pytest.mark.parametrize(("max_bytes", "size"), [(100, 100), (0, 10_000)])
def test_a_log_within_the_limit_stays(tmp_path: Path, max_bytes: int, size: int) -> None:
    log = tmp_path / "web.log"
    log.write_text("a" * size)
    log_files.rotate(log, _settings(max_bytes))
    assert _contents(tmp_path) == {"web.log": "a" * size}


def test_without_copies_it_is_emptied(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("a" * 101)
    log_files.rotate(log, _settings(kept=0))
    assert _contents(tmp_path) == {"web.log": ""}


def test_a_log_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    log_files.rotate(tmp_path / "none.log", _settings())
    log_files.set_aside(tmp_path / "none.log", _settings())
    assert not _contents(tmp_path)


def test_the_log_of_an_earlier_start_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    for text in ("first", "second"):
        log.write_text(text)
        log_files.set_aside(log, _settings())
    assert _contents(tmp_path) == {"web.log.1": "second", "web.log.2": "first"}


def test_a_copy_is_as_private_as_the_log(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("a" * 101)
    log.chmod(0o600)
    log_files.rotate(log, _settings())
    assert stat.S_IMODE((tmp_path / "web.log.1").stat().st_mode) == 0o600


def test_on_a_full_disk_the_log_is_emptied_and_the_reason_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log_files.shutil, "copyfileobj", full)
    log = tmp_path / "web.log"
    log.write_text("a" * 101)
    with pytest.raises(OSError, match="No space"):
        log_files.rotate(log, _settings())
    assert _contents(tmp_path) == {"web.log": ""}, "half a copy would keep the disk full"


def test_a_writer_goes_on_in_the_emptied_file_and_the_disk_is_bounded(tmp_path: Path) -> None:
    log, settings = tmp_path / "web.log", _settings(200_000, 3)
    num_bytes = []
    command = [sys.executable, "-c", _WRITER]
    pipe = subprocess.PIPE
    with (
        log.open("ab") as file,
        subprocess.Popen(command, stdin=pipe, stdout=file, stderr=pipe, bufsize=0) as writer,
    ):
        assert writer.stdin is not None and writer.stderr is not None
        for _ in range(249):
            assert writer.stderr.read(1)
            writer.stdin.write(b"\n")
            log_files.rotate(log, settings)
            num_bytes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        writer.communicate()  # it writes the last 2,000 lines
    assert writer.returncode == 0
    assert max(num_bytes) < 200_000 * 6
    assert not (tmp_path / "web.log.4").exists()
    before = 0
    for name in ("web.log.3", "web.log.2", "web.log.1", "web.log"):
        lines = (tmp_path / name).read_text().splitlines()
        numbers = [int(line.removeprefix("line ")) for line in lines]
        assert numbers[0] > before, "nothing twice"
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "gaps only between files"
        before = numbers[-1]
    assert before == 499_999


def test_a_copy_ends_with_a_whole_line(tmp_path: Path) -> None:
    """A reader may see the begin of a line that is being written."""
    log = tmp_path / "web.log"
    log.write_text("whole\n" * 20 + "to")
    log_files.rotate(log, _settings())
    assert _contents(tmp_path) == {"web.log": "", "web.log.1": "whole\n" * 20}
