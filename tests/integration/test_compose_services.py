"""The containers' commands with the environment that docker-compose.yml gives them, but without
containers."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from shared.registry import records
from tests.conftest import ROOT, models_folder, wait_for
from tests.support import alone
from tests.support.counter_model import expected_text

SERVICES: dict[str, Any] = msgspec.yaml.decode((ROOT / "docker-compose.yml").read_bytes())[
    "services"
]
_STARTED = ("agent-cpu", "web", "flower")
_PASSWORD = "a-password"


def _environment(name: str, folder: Path, redis_url: str) -> dict[str, str]:
    """What a service is given, with the folder in place of its volume."""
    given = {key: str(value) for key, value in SERVICES[name]["environment"].items()}
    given["REDIS_URL"] = redis_url
    replaced = {key: value.replace("/data", str(folder)) for key, value in given.items()}
    passwords = {"LLMIS_FLOWER_PASSWORD": _PASSWORD} if "LLMIS_FLOWER_PASSWORD" in given else {}
    return replaced | {"LLMIS_LOG_LEVEL": "info"} | passwords


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[alone.Environment]:
    folder = tmp_path_factory.mktemp("compose")
    with alone.environment(folder) as environment, ExitStack() as stack:
        models = environment.data_dir / "models"
        models.symlink_to(models_folder())
        for name in _STARTED:
            given = _environment(name, environment.data_dir, environment.variables["REDIS_URL"])
            command = [sys.executable, "-m", "cli", *SERVICES[name]["command"]]
            stack.enter_context(environment.started(command, **given))
        yield environment


def _llmis(environment: alone.Environment, service: str, *arguments: str) -> str:
    """As `docker compose exec` runs it; "" when it fails."""
    given = _environment(service, environment.data_dir, environment.variables["REDIS_URL"])
    result = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=environment.variables | given,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    return result.stdout.strip() or "done" if result.returncode == 0 else ""


def _status(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    payload = json.dumps(body) if body else None
    connection.request("POST" if body else "GET", path, payload, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_the_health_checks_come_to_pass_and_a_key_opens_the_service(
    composed: alone.Environment,
) -> None:
    # Each check is a process: cheaper signs come first.
    client = redis.Redis.from_url(composed.variables["REDIS_URL"])
    wait_for(lambda: records.read_nodes(client), "the agent is registered", 90)
    for port in (composed.port, composed.flower_port):
        wait_for(lambda port=port: _accepts(port), "the port is open", 90)
    for name in _STARTED:
        check = SERVICES[name]["healthcheck"]["test"][2:]
        wait_for(lambda c=check, n=name: _llmis(composed, n, *c), f"{name} is healthy", 90)
    key = _llmis(composed, "web", "keys", "create", "ops", "--scope", "admin").splitlines()[0]
    body = {"model": "counter", "prompt": "5", "max_tokens": 8, "temperature": 0}
    assert _status(composed.port, "/v1/completions", body)[0] == 401
    bearer = {"Authorization": f"Bearer {key}"}
    wait_for(
        lambda: _status(composed.port, "/v1/completions", body, **bearer)[0] == 200,
        "the model answers who has a key",
        90,
    )
    _, answer = _status(composed.port, "/v1/completions", body, **bearer)
    assert json.loads(answer)["choices"][0]["text"] == expected_text(5, 8)
    assert _status(composed.port, "/metrics")[0] == 401
    assert _status(composed.port, "/metrics", **bearer)[0] == 200
    assert _status(composed.flower_port, "/")[0] == 401


def test_no_container_starts_open(tmp_path: Path) -> None:
    """What it is published for goes through 0.0.0.0 in the container: without auth it ends."""
    for name in ("web", "flower"):
        given = _environment(name, tmp_path, "redis://127.0.0.1:1/0") | {"LLMIS_AUTH": "false"}
        variables = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")} | given
        command = [sys.executable, "-m", "cli", *SERVICES[name]["command"]]
        result = subprocess.run(
            command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 1
        assert "auth" in result.stderr
