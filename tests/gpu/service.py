"""Starts a whole llmis whose counter models run on the GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, Service, free_port

_CONFIG = """\
host = "127.0.0.1"
port = {port}
flower_port = 0
models_dir = "{models}"
orphan_grace_s = 2
replica_wait_s = 60
drain_grace_s = 3

[[models]]
name = "counter"
path = "counter-gptq"
engine = "exllamav2"
quant = "fp16"
context_length = 2048
slots = 64
strip_leading_space = true

[[models]]
name = "asleep"
path = "counter-fp16"
engine = "exllamav2"
quant = "q8"
context_length = 1024
slots = 4
preload = false
"""


@contextmanager
def gpu_service(data_dir: Path, models: Path) -> Iterator[Service]:
    """`llmis up`, ready; stopped whatever happens. `models` holds counter-fp16 and counter-gptq."""
    port = free_port()
    config = data_dir / "llmis.toml"
    config.write_text(_CONFIG.format(port=port, models=models))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    environment.pop("REDIS_URL", None)
    environment |= {"LLMIS_CONFIG": str(config), "LLMIS_DATA_DIR": str(data_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "up"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    running = Service(port, 0, data_dir, process)
    try:
        _wait_until_ready(running)
        yield running
    finally:
        running.stop()


def _wait_until_ready(service: Service) -> None:
    assert service.process.stdout is not None, "asked for"
    lines = []
    for line in service.process.stdout:
        lines.append(line)
        if line.startswith("llmis is ready"):
            return
    logs = (path.read_text()[-2000:] for path in (service.data_dir / "logs").glob("replica*"))
    pytest.fail("the service did not start:\n" + "".join(lines) + "\n".join(logs))
