"""The service keeps to its OpenAPI document, whatever requests are made up from it."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Service, running_service

_CONFIG = Path(__file__).parent / "schemathesis.toml"


@pytest.fixture
def loading_service(tmp_path: Path) -> Iterator[Service]:
    """A service of its own: what is made up may load and unload models."""
    with running_service(tmp_path) as running:
        yield running


def test_no_made_up_request_gets_an_answer_that_is_not_documented(
    loading_service: Service, tmp_path: Path
) -> None:
    """No 500, no other status than documented, no answer without its shape; of streams, too."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(_CONFIG)]
    command += ["run", f"{loading_service.url}/openapi.json", "--no-color"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-10_000:]
    assert _num_finished(loading_service) > 100, "hardly a request became a generation"


def _num_finished(service: Service) -> float:
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    wanted = 'llmis_requests_total{finish_reason="length",model="counter",outcome="finished"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))
