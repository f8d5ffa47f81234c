"""The service keeps to its OpenAPI document, whatever requests are made up from it."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Service, running_service

_CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "unsupported_method", "allow_header_conformance"),
)


@pytest.fixture
def loading_service(tmp_path: Path) -> Iterator[Service]:
    """A service of its own: what is made up may load and unload models."""
    with running_service(tmp_path) as running:
        yield running


def test_no_made_up_request_gets_an_answer_that_is_not_documented(
    loading_service: Service, tmp_path: Path
) -> None:
    """No 500, no other status than documented, no answer without its shape; of streams, too."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{loading_service.url}/openapi.json"),
        *("--checks", ",".join(_CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "10", "--seed", "1", "--request-timeout", "20"),
        *("--continue-on-failure", "--warnings", "off", "--no-color"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["SCHEMATHESIS_HOOKS"] = "tests.integration.schemathesis_hooks"
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
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
    wanted = 'llmis_request_outcome_total{model="counter",outcome="finished"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))
