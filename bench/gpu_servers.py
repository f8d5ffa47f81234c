"""Starts what bench/gpu.py compares: the whole service, and the bare generator, one at a time."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from bench import servers
from bench.bare_exllamav2 import BareLoad, BareSettings
from bench.load import LoadResult
from bench.measure import Stalled
from bench.processes import ROOT, free_port
from bench.servers import FOLDER, Server
from tests.gpu import models

_ASK_LIMIT_S = 300.0
"""For the bare generator to load, or to run a load."""
ATTENTION_VARIABLE = "LLMIS_EXL2_ATTENTION"
"""Tells the service's ExLlamaV2 engine which attention to take; auto = its own choice."""


@dataclass(frozen=True)
class GpuModel:
    """A model of `tests.gpu.models` and how both sides hold it."""

    kind: str
    slots: int = 64
    context_length: int = 1024
    """Tokens a slot, a multiple of 256: the same pages on both sides."""
    quant: str = "fp16"
    attention: str = "auto"

    @property
    def folder(self) -> Path:
        return models.write(self.kind, FOLDER / "models" / self.kind)

    def with_attention(self, attention: str) -> "GpuModel":
        return replace(self, attention=attention)


class BareProcess:
    """The bare generator, loaded and waiting for loads."""

    def __init__(self, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
        self._process = process
        self._log_path = log_path

    def ask(self, line: BareSettings | BareLoad) -> bytes:
        """Raises RuntimeError with the end of its log when it has ended, Stalled when it takes
        longer than `_ASK_LIMIT_S`; it is killed then."""
        assert self._process.stdin is not None and self._process.stdout is not None, "piped"
        deadline = time.monotonic() + _ASK_LIMIT_S
        timer = threading.Timer(_ASK_LIMIT_S, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(msgspec.json.encode(line) + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
        if not answer and time.monotonic() >= deadline:
            raise Stalled(f"the bare generator gave no answer in {_ASK_LIMIT_S:g} s")
        if not answer:
            tail = self._log_path.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"the bare generator ended:\n{tail}")
        return answer

    def run(self, load: BareLoad) -> LoadResult:
        return msgspec.json.decode(self.ask(load), type=LoadResult)


@contextmanager
def bare(model: GpuModel) -> Iterator[BareProcess]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = BareSettings(
        folder=str(model.folder),
        attention=model.attention,
        slots=model.slots,
        context_length=model.context_length,
    )
    log_path = FOLDER / "bare.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.bare_exllamav2"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        running = BareProcess(process, log_path)
        running.ask(settings)
        yield running
    finally:
        process.kill()  # it holds nothing but the GPU's memory
        process.communicate()


@contextmanager
def llmis(model: GpuModel, *, preload: bool = True) -> Iterator[Server]:
    """The whole service with one model, named as its kind, and without Flower."""
    port = free_port()
    name = f"llmis-{model.kind}"
    # Logs and a Redis of an earlier run would be taken for this one's.
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    config = f"""\
port = {port}
flower_port = 0
models_dir = "{model.folder.parent}"

[[models]]
name = "{model.kind}"
path = "{model.folder.name}"
engine = "exllamav2"
quant = "{model.quant}"
slots = {model.slots}
context_length = {model.context_length}
preload = {str(preload).lower()}
"""
    environment = servers.llmis_environment(name, config)
    environment[ATTENTION_VARIABLE] = model.attention
    with servers.child(name, [sys.executable, "-m", "cli", "up"], environment) as process:
        servers.wait_for(lambda: b"llmis is ready" in process.log_path.read_bytes(), process)
        if preload and model.attention != "auto":
            _check_attention(model)
        yield Server("llmis", port, servers.pid_of(process))


def log_lines(model: GpuModel, words: str) -> list[dict[str, Any]]:
    """Lines of the replica's log that have `words` in them."""
    path = FOLDER / f"llmis-{model.kind}" / "logs" / f"replica-{model.kind}.log"
    found = []
    for line in path.read_text(errors="replace").splitlines():
        if words in line and line.startswith("{"):
            found.append(json.loads(line))
    return found


def _check_attention(model: GpuModel) -> None:
    """Raises RuntimeError when the replica took another one: the same would be measured twice."""
    said = log_lines(model, '"attention in use"')
    if not said or said[-1].get("attention") != model.attention:
        raise RuntimeError(f"asked for attention {model.attention}, the replica says {said[-1:]}")
