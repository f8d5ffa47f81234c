"""The processes of a service one by one, as supervisors other than `llmis up` start them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from cli.service import embedded_redis
from shared.settings.load import load as load_settings
from tests.conftest import ROOT, Service, free_port, models_folder, wait_for

_CONFIG = """\
port = {port}
flower_port = {flower_port}
models_dir = "{models}"
drain_grace_s = 2

[[models]]
name = "counter"
path = "counter.gguf"
context_length = 2048
slots = 4
strip_leading_space = true
"""


@dataclass
class Environment:
    """What its processes are told, and where they are found."""

    variables: dict[str, str]
    port: int
    flower_port: int
    data_dir: Path

    @contextmanager
    def started(self, command: list[str], folder: Path = ROOT, **more: str) -> Iterator[Service]:
        """Run a command in the folder of the code; stop it, whatever happens."""
        with (self.data_dir / "output").open("a") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self.variables | more,
                stdout=output,
                stderr=output,
                text=True,
            )
        service = Service(self.port, self.flower_port, self.data_dir, process)
        try:
            yield service
        finally:
            service.stop()

    def output(self) -> str:
        return (self.data_dir / "output").read_text()


@contextmanager
def environment(data_dir: Path) -> Iterator[Environment]:
    """A Redis of its own, and settings with the counter model; nothing else runs."""
    port, flower_port = free_port(), free_port()
    config = data_dir / "llmis.toml"
    config.write_text(_CONFIG.format(port=port, flower_port=flower_port, models=models_folder()))
    variables = _clean(os.environ) | {"LLMIS_CONFIG": str(config)}
    variables |= {"LLMIS_DATA_DIR": str(data_dir / "var")}
    command, url = embedded_redis.prepare(load_settings(variables))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(url), "Redis answers")
        variables["REDIS_URL"] = url
        # As where the virtual environment is active.
        variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
        (data_dir / "var").mkdir(exist_ok=True)
        yield Environment(variables, port, flower_port, data_dir / "var")
    finally:
        server.terminate()
        server.wait()


def _clean(variables: Mapping[str, str]) -> dict[str, str]:
    ours = ("LLMIS_", "REDIS_URL", "PROMETHEUS_")
    return {name: value for name, value in variables.items() if not name.startswith(ours)}


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
