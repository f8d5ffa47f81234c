"""A second host: a network namespace with an agent of its own, and a Redis that both reach."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.conftest import ROOT, TEST_FILES, free_port, running_redis

_HERE, _THERE = "10.213.77.1", "10.213.77.2"
can_make_namespaces = os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class SecondHost:
    namespace: str
    link: str
    redis_url: str
    data_dir: Path
    agent: subprocess.Popen[bytes] | None = None

    def join(self) -> None:
        """What an operator types there: REDIS_URL, and start an agent."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
        environment |= {
            "REDIS_URL": self.redis_url,
            "LLMIS_NODE_NAME": "second",  # in the namespace the host name is the same
            "LLMIS_MODELS_DIR": str(TEST_FILES / "models"),
            "LLMIS_DATA_DIR": str(self.data_dir),
        }
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "worker.agent"]
        with (self.data_dir / "agent.out").open("wb") as log:
            self.agent = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def leave(self) -> None:
        if self.agent is not None:
            self.agent.send_signal(signal.SIGTERM)
            self.agent.wait(40)
            self.agent = None

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        _ip("link", "set", self.link, "up")


@contextmanager
def second_host(redis_url: str, data_dir: Path) -> Iterator[SecondHost]:
    namespace, link = f"llmis{os.getpid()}", f"ll{os.getpid()}"
    data_dir.mkdir()
    _ip("netns", "add", namespace)
    host = SecondHost(namespace, link, redis_url, data_dir)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("addr", "add", f"{_HERE}/24", "dev", link)
        _ip("link", "set", link, "up")
        for arguments in (f"addr add {_THERE}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip("-n", namespace, *arguments.split())
        yield host
    finally:
        host.mend()
        host.leave()
        subprocess.run(["ip", "netns", "del", namespace], check=False)


@contextmanager
def shared_redis(folder: Path) -> Iterator[str]:
    """A Redis that both hosts reach."""
    port, password = free_port(), secrets.token_hex(16)
    options = ["--port", str(port), "--bind", "0.0.0.0", "--requirepass", password]
    with running_redis(redis.Redis(port=port, password=password), folder, *options):
        yield f"redis://:{password}@{_HERE}:{port}/0"
