"""tools/gpu/first-contact with stand-ins for python3, nvcc and the GPU: what is left when a
stage fails, hangs, or takes the rest of the time."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_for

ROOT = Path(__file__).parent.parent.parent
_MAX_FILES = 8
"""A lent machine gives back no more."""
_STUB = """\
#!/usr/bin/env bash
# Stands for python3 and for .venv-gpu's python; $PIP, $BUILD and $TESTS say how it goes.
# What hangs sends `timeout` the signal of its own timer: its time is up, on any machine.
echo "$*" >>"$CALLS"
case "$*" in
-) cat >/dev/null ;;
"- "*) cat >/dev/null ;;
*"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
*"-m pip"*) [ "$PIP" = fine ] || { echo "no matching distribution"; exit 1; } ;;
*build_extension.py*)
    [ "$BUILD" = fails ] && { echo "nvcc: error in q_gemm.cu"; exit 1; }
    [ "$BUILD" = hangs ] && {
        sleep 600 & echo $! >"$CALLS.child"; kill -ALRM $PPID; exec sleep 600; }
    mkdir -p var/exl2-build/0.3.2-torch2-sm9.0
    echo library >var/exl2-build/0.3.2-torch2-sm9.0/exllamav2_ext.so ;;
*"-m tests.gpu.models"*) mkdir -p "${@: -2:1}" ;;
*"-m pytest"*)
    [ "$TESTS" = fine ] && { echo "3 passed"; exit; }
    exec "$REAL" -m pytest -v -p no:cacheprovider "$PWD/test_it.py" ;;
*pack_build.py*) exec "$REAL" "$@" ;;
*"-m bench.attention"*) echo "copy 3,000 GB/s"; echo '{"cases": []}' >"${@: -1}" ;;
*"-m bench.gpu"*) echo '{"served": {}}' >"${@: -1}"; echo "one side" ;;
*"-m tools.gpu.questions"*) echo '{"name": "machine"}' >>"${@: -1}" ;;
*) echo "unknown: $*"; exit 9 ;;
esac
"""
_TESTS = """
import os, signal, time

def test_that_fails():
    assert 1 == 2

def test_that_hangs():
    os.kill(os.getppid(), signal.SIGALRM)
    time.sleep(600)
"""


@dataclass(frozen=True)
class Machine:
    """A copy of the repository's tools, with a wheel, on a machine of stand-ins."""

    home: Path

    def run(self, *arguments: str, **behaviour: str) -> "Ran":
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")} | {
            "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
            "OUT": str(self.home / "out"),
            "CALLS": str(self.home / "calls"),
            "REAL": sys.executable,
            **{"PIP": "fine", "BUILD": "fine", "TESTS": "fine"},
            **behaviour,
        }
        done = subprocess.run(
            [self.home / "tools/gpu/first-contact", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=170,
            # As a shell starts what is put in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        return Ran(done.returncode, done.stdout, self.home / "out", self.home / "calls")


@dataclass(frozen=True)
class Ran:
    code: int
    said: str
    out: Path
    calls: Path

    def stages(self) -> dict[str, int | None]:
        lines = (self.out / "stages.jsonl").read_text().splitlines()
        return {line["stage"]: line["exit"] for line in map(json.loads, lines)}

    def files(self) -> set[str]:
        return {path.name for path in self.out.iterdir()}

    def called(self, words: str) -> bool:
        return words in self.calls.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "tools/gpu").mkdir(parents=True)
    for name in ("first-contact", "prepare", "pack_build.py", "wheels.txt"):
        shutil.copy(ROOT / "tools/gpu" / name, tmp_path / "tools/gpu")
    for name in ("constraints.txt", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "var/gpu-wheels").mkdir(parents=True)
    (tmp_path / "var/gpu-wheels/x-1-py3-none-any.whl").touch()
    (tmp_path / "test_it.py").write_text(_TESTS)
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/python3"
    stub.write_text(_STUB)
    stub.chmod(0o755)
    return Machine(tmp_path)


def test_the_first_call_leaves_its_facts_and_the_build(machine: Machine) -> None:
    ran = machine.run("1")
    assert ran.code == 0, ran.said
    wanted = {"setup", "build", "kernels", "attention", "pack", "engine", "logits"}
    assert wanted <= ran.stages().keys() and set(ran.stages().values()) == {0}
    assert len(ran.files()) <= _MAX_FILES
    assert {"attention.json", "kernels.log", "engine.log", "exl2-build.tar"} <= ran.files()
    # Unpacked as the head of the script says, it lies where the next call looks.
    shutil.rmtree(machine.home / "var/exl2-build")
    subprocess.run(["tar", "-xf", ran.out / "exl2-build.tar"], cwd=machine.home, check=True)
    (packed,) = (machine.home / "var/exl2-build").iterdir()
    assert packed.name == "0.3.2-torch2-sm9.0.so.xz"
    assert lzma.decompress(packed.read_bytes()) == b"library\n"
    assert not ran.called("bench.gpu") and not ran.called("1b")


def test_the_later_calls_measure_and_ask(machine: Machine) -> None:
    second = machine.run("2")
    assert second.code == 0, second.said
    assert second.called("-m bench.gpu served --kinds 1b-gptq --rounds 2 --partial")
    assert {"bench.json", "bench.log", "answers.jsonl"} <= second.files()
    assert len(second.files()) <= _MAX_FILES
    shutil.rmtree(second.out)
    third = machine.run("3")
    assert third.code == 0, third.said
    assert {"bench.json", "service.log"} <= third.files() and len(third.files()) <= _MAX_FILES


def test_a_failed_build_is_told_and_nothing_waits_on_its_lock(machine: Machine) -> None:
    ran = machine.run("1", BUILD="fails")
    assert ran.code == 1
    assert "THE BUILD FAILED" in ran.said and "nvcc: error in q_gemm.cu" in ran.said
    assert ran.said.rstrip().endswith("FAILED: build")
    stages = ran.stages()
    assert stages["build"] == 1 and stages["kernels"] == stages["attention"] == 0
    assert "engine" not in stages and not ran.called("tests/gpu/test_engine.py")


def test_a_build_that_hangs_is_stopped_in_the_background(machine: Machine) -> None:
    ran = machine.run("1", BUILD="hangs", LLMIS_STAGE_LIMIT_S="100")
    assert ran.code == 1 and ran.stages()["build"] == 124
    assert "THE BUILD FAILED" in ran.said and "STOPPED after 100 s" in ran.said
    # What it has started ignores SIGINT, as all do that a script starts in the background.
    child = int((machine.home / "calls.child").read_text())
    wait_for(lambda: not _runs(child), "its child is killed")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_tests_that_hang_tell_what_failed_before(machine: Machine) -> None:
    ran = machine.run("kernels", "attention", TESTS="hang", LLMIS_STAGE_LIMIT_S="100")
    assert ran.code == 1
    stages = ran.stages()
    assert stages["kernels"] == 124 and stages["attention"] == 0
    log = (ran.out / "kernels.log").read_text()
    assert "assert 1 == 2" in log and "KeyboardInterrupt" in log
    assert "Traceback" not in log, "its summary is interrupted"
    assert "1 failed" in ran.said and "STOPPED after 100 s" in ran.said
    assert ran.said.rstrip().endswith("FAILED: kernels")
    assert not ran.called("build_extension.py")


def test_stages_that_have_no_time_left_say_so(machine: Machine) -> None:
    ran = machine.run("1", LLMIS_LIMIT_S="12")
    assert ran.code == 1 and "setup: no time left" in ran.said
    assert ran.stages() == {"setup": None}


def test_a_setup_that_fails_ends_the_call(machine: Machine) -> None:
    ran = machine.run("1", PIP="broken")
    assert ran.code == 1 and ran.stages() == {"setup": 1}
    assert "no matching distribution" in ran.said and ran.said.rstrip().endswith("FAILED: setup")


def test_wheels_that_did_not_travel_are_missed_at_once(machine: Machine) -> None:
    shutil.rmtree(machine.home / "var/gpu-wheels")
    ran = machine.run("1")
    assert ran.code == 1 and "name var/gpu-wheels in carry" in ran.said
    assert not ran.calls.exists()
    # A machine that is still warm has what the last call installed.
    (machine.home / ".venv-gpu").mkdir()
    (machine.home / ".venv-gpu/.installed").touch()
    machine.run("1")
    assert ran.calls.exists()


def test_an_unknown_stage_is_refused(machine: Machine) -> None:
    ran = machine.run("kernels", "bnech")
    assert ran.code == 2 and "no stage or call bnech" in ran.said


def test_the_plan_names_files_that_are_there() -> None:
    """And nothing of the machine that it was written on."""
    script = (ROOT / "tools/gpu/first-contact").read_text()
    for word in script.split():
        if word.startswith(("tests/", "tools/")):
            assert (ROOT / word.rstrip(";")).exists(), word
    for path in (*(ROOT / "tools/gpu").rglob("*"), *(ROOT / "bench").glob("*.py")):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text()
            assert not any(word in text for word in ("/work/", "/root/", "pypi", "//files."))
