"""The `openai` package of npm, under the Node of a Python wheel.

`tests/clients/node/client.mjs` does the asking.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients import node_runtime
from tests.conftest import Service, wait_for
from tests.support.counter_model import expected_text
from tests.support.embedding_model import number_vector


@pytest.fixture(scope="module")
def steps(
    node_packages: Path, service: Service, tool_counter: str, embeddings: str
) -> dict[str, Any]:
    """What each step of the script has found."""
    arguments = (f"{service.url}/v1", tool_counter, embeddings)
    done = node_runtime.run(node_packages, node_runtime.FILES / "client.mjs", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("step"): line for line in lines}


def _said(start: int, num_tokens: int) -> str:
    return expected_text(start, num_tokens).lstrip()


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((node_runtime.FILES / "package-lock.json").read_text())
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
