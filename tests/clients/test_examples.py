"""The files of `examples/`, run as a reader runs them, against a service of their own."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from shared import names
from shared.settings.load import load as load_settings
from tests.clients import node_runtime
from tests.clients.conftest import TOOL_TEMPLATE
from tests.conftest import ROOT, TEST_FILES, Service, free_port, running_service, wait_for
from tests.support.admin_client import model
from tests.support.counter_model import expected_text
from tests.support.embedding_model import mean_file
from tests.support.metrics_page import Page
from tests.support.plain_client import owner_of
from worker.engines.base import EngineSettings
from worker.engines.exllamav2.load_plan import make_plan
from worker.sequence import Speculation

_EXAMPLES = ROOT / "examples"
_GEMMA = "gemma-3-270m"
_MAX_OPEN_REQUESTS = 64
_SETTINGS = """
max_open_requests = {max_open_requests}
requests_per_minute = 100000

[[models]]
name = "mean"
path = "{mean}"
context_length = 512

[[models]]
name = "tool-counter"
path = "counter.gguf"
chat_template = "tools.jinja"
strip_leading_space = true
"""


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Examples:
    service: Service
    node_packages: Path | None = None

    def run(self, name: str, *arguments: str, model: str = "") -> Done:
        """Run an example to its end. Without `model` it takes its own default."""
        path = _EXAMPLES / name
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
        environment |= {
            "LLMIS_URL": self.service.url,
            "OPENAI_BASE_URL": f"{self.service.url}/v1",
            "OPENAI_API_KEY": f"example-{path.stem}",
        }
        environment |= {"MODEL": model} if model else {}
        if path.suffix == ".mjs":
            assert self.node_packages is not None
            done = node_runtime.run(self.node_packages, path, *arguments, env=environment)
        else:
            command = [sys.executable, path] if path.suffix == ".py" else [path]
            done = subprocess.run(
                [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120
            )
        return Done(done.returncode, done.stdout, done.stderr)

    def output(self, name: str, *arguments: str, model: str = "") -> str:
        """What an example prints that ends well."""
        done = self.run(name, *arguments, model=model)
        assert done.status == 0, done.err
        return done.out


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Examples]:
    data_dir = tmp_path_factory.mktemp("examples")
    (data_dir / "tools.jinja").write_text(TOOL_TEMPLATE)
    mean = mean_file(TEST_FILES / "models")
    more = _SETTINGS.format(max_open_requests=_MAX_OPEN_REQUESTS, mean=mean)
    with running_service(data_dir, demo=True, extra=more) as service:
        yield Examples(service)


@pytest.fixture
def node(examples: Examples, node_packages: Path) -> Examples:
    return Examples(examples.service, node_packages)


def _events(out: str) -> list[Any]:
    return [json.loads(data) for data in re.findall(r"^data: (\{.*)$", out, re.MULTILINE)]


def test_every_example_is_run_here_and_described() -> None:
    names = {
        str(path.relative_to(_EXAMPLES))
        for path in _EXAMPLES.rglob("*")
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts
    }
    run_here = set(re.findall(r'"([\w/]+\.(?:sh|py|mjs|toml))"', Path(__file__).read_text()))
    described = re.findall(r"^\| `(\S+)` \|", (_EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert names == run_here
    assert names == {name for name in described if "." in name}


# -- curl ------------------------------------------------------------------------------------


def test_models(examples: Examples) -> None:
    names = [entry["id"] for entry in json.loads(examples.output("curl/models.sh"))["data"]]
    assert {"counter", _GEMMA, "mean"} <= set(names)


def test_a_question_and_its_answer(examples: Examples) -> None:
    answer = json.loads(examples.output("curl/chat.sh"))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_model_that_is_not_there_is_an_exit_status_and_a_message(examples: Examples) -> None:
    done = examples.run("curl/chat.sh", model="nobody")
    assert done.status != 0
    assert json.loads(done.out)["error"]["code"] == "model_not_found"


def test_an_answer_in_pieces(examples: Examples) -> None:
    out = examples.output("curl/stream.sh")
    chunks = _events(out)
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert "Paris" in text
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert out.rstrip().endswith("data: [DONE]")


def test_the_headers_of_limits(examples: Examples) -> None:
    lines = examples.output("curl/limits.sh", model="counter").splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert lines[0].split()[1] == "200"
    assert headers["x-ratelimit-limit-requests"] == "100000"
    assert "x-request-id" in headers


def test_a_cancel_from_another_connection(examples: Examples) -> None:
    out = examples.output("curl/cancel.sh")
    (end,) = _events(out)
    assert end["error"]["code"] == "request_cancelled"
    assert json.loads(out.splitlines()[-1])["status"] == "cancelled"


def test_coming_back_with_the_last_event_id(examples: Examples) -> None:
    first, rest, verdict = examples.output("curl/resume.sh").splitlines()
    assert re.search(r"after the event \S+:\d+\S*: .*\w", first)
    assert re.search(r"the rest: .*\w", rest)
    assert verdict == "Both together are the whole answer."


# -- Python ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["python/chat.py", "python/stream.py"])
def test_chats_of_the_openai_package(examples: Examples, name: str) -> None:
    assert "Paris" in examples.output(name)
    assert examples.output(name, "17", model="counter").strip() == expected_text(17, 100).strip()


def test_many_at_once_and_more_than_the_key_may_have(examples: Examples) -> None:
    """The key has as many open requests as it may have, until one of the example's is refused."""
    service, running = examples.service, names.running_key(owner_of("example-many"))
    others = [f"elsewhere-{number}" for number in range(_MAX_OPEN_REQUESTS)]
    service.redis.zadd(running, dict.fromkeys(others, time.time() + 3600))
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(examples.output, "python/many.py", "250", model="counter")
        try:
            wait_for(lambda: many.done() or _num_refused(service) > 0, "one is refused")
        finally:
            service.redis.zrem(running, *others)
    *lines, last = many.result().splitlines()
    for number, line in enumerate(lines):
        assert line.startswith(f"{number}:{expected_text(number, 5)} ")
    found = re.fullmatch(r"250 answers, (\d+) refusals on the way", last)
    assert found and int(found[1]) > 0


def _num_refused(service: Service) -> float:
    return Page.of(service).value("llmis_rate_limit_hits_total", limit="open")


def test_the_nearest_text(examples: Examples) -> None:
    out = examples.output("python/embeddings.py", "17 18", "500 600", "17 18 19")
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == ["17 18 19", "500 600"]


def test_coming_back_with_an_idempotency_key(examples: Examples) -> None:
    done = examples.run("python/come_back.py", "17", model="counter")
    assert done.status == 0, done.err
    assert done.out.strip() == expected_text(17, 400).strip()
    assert "cut by the example" in done.err
    assert "2 connections, one request" in done.err


def test_coming_back_by_hand(examples: Examples) -> None:
    done = examples.run("python/resume.py", "1 2 3", model="counter")
    assert done.status == 0, done.err
    assert done.out.rstrip("\n") == expected_text(3, 200)
    assert "cut by the example" in done.err


def test_a_typed_answer(examples: Examples) -> None:
    found = re.fullmatch(
        r"(.{1,30}): (-?\d+) °C, (clear|clouds|rain|snow)\n",
        examples.output("python/structured_output.py"),
    )
    assert found and found[1] == "Oslo"


@pytest.mark.parametrize("name", [_GEMMA, "tool-counter"])
def test_a_tool_is_called_and_its_result_answered(examples: Examples, name: str) -> None:
    called, answer = examples.output("python/tools.py", model=name).split("\n", 1)
    found = re.fullmatch(r'stock\(\{"fruit": ?"(apples|pears)"\}\) = (\d+)', called)
    assert found and int(found[2]) == {"apples": 41, "pears": 7}[found[1]]
    if name == "tool-counter":
        assert answer.strip() == expected_text(int(found[2]), 100).strip()


def _check_conversations(done: Done) -> None:
    assert done.status == 0, done.err
    first, second = done.out.splitlines()
    assert first == f"1 2 3 …{expected_text(3, 200)}"
    assert second == f"500 …{expected_text(500, 200)}"
    assert "2 connections, 2 whole answers" in done.err


def test_requests_over_one_websocket(examples: Examples) -> None:
    _check_conversations(examples.run("python/websocket.py", "1 2 3", "500", model="counter"))


def test_loading_and_unloading(examples: Examples) -> None:
    out = examples.output("python/load_model.py", "small", "counter.gguf")
    load, unload = out.split(f"1 2 3 …{expected_text(3, 5)}\n")
    assert "100% ready" in load
    assert "100% unloaded" in unload
    assert model(examples.service, "small") is None


def test_a_load_that_fails_is_an_exit_status_and_a_message(examples: Examples) -> None:
    done = examples.run("python/load_model.py", "small", "nothing.gguf")
    assert done.status == 1
    assert "nothing.gguf" in done.err


@pytest.mark.parametrize("name", ["python/batch.py", "python/load_model.py"])
def test_missing_arguments_are_a_usage_line(name: str) -> None:
    done = subprocess.run(
        [sys.executable, _EXAMPLES / name], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert re.fullmatch(r"usage: python \w+\.py .+\n", done.stderr)


def test_a_batch_lets_others_pass_and_is_computed_once(examples: Examples) -> None:
    runs = [
        examples.output("python/batch.py", "b", "100", model="counter-small").splitlines()
        for _ in range(2)
    ]
    for _, *lines in runs:
        assert lines == [f"{number}:{expected_text(number, 200)}" for number in range(100)]
    first = runs[0][0]
    found = re.fullmatch(rf"answered after (\d+) of 100 of the batch:{expected_text(17, 3)}", first)
    assert found and int(found[1]) < 40
    log = examples.service.log("replica-counter-small")
    assert log.count('"completion_tokens": 200') == 100


# -- Node ------------------------------------------------------------------------------------


def test_a_chat_in_node(node: Examples) -> None:
    out = node.output("node/chat.mjs", "17", model="counter")
    assert out.strip() == f"{expected_text(17, 100).strip()}\n(100 tokens)"


def test_requests_over_one_websocket_in_node(node: Examples) -> None:
    _check_conversations(node.run("node/websocket.mjs", "1 2 3", "500", model="counter"))


# -- settings --------------------------------------------------------------------------------


def _install(name: str, folder: Path) -> Path:
    """Copy settings to where their paths lead, as a reader does."""
    (folder / "templates").symlink_to(ROOT / "templates")
    target = folder / name
    target.write_text((_EXAMPLES / name).read_text())
    return target


def test_the_settings_for_a_cpu_start_a_service(tmp_path: Path) -> None:
    environ = {
        "LLMIS_CONFIG": str(_install("cpu.toml", tmp_path)),
        "LLMIS_MODELS_DIR": str(TEST_FILES / "models"),
        "LLMIS_PORT": str(free_port()),
        "LLMIS_FLOWER_PORT": "0",
    }
    loaded = load_settings(environ)
    data_dir = tmp_path / "var"
    data_dir.mkdir()
    with running_service(data_dir, environ=environ) as running:
        service = replace(running, port=loaded.port)
        states = {entry.name: model(service, entry.name)["state"] for entry in loaded.models}
    assert len(states) == 3
    assert states.pop(_GEMMA) == "ready"
    assert set(states.values()) == {"unloaded"}


def test_the_settings_for_a_gpu_are_what_its_engine_takes(tmp_path: Path) -> None:
    loaded = load_settings({"LLMIS_CONFIG": str(_install("cuda.toml", tmp_path))})
    assert len(loaded.models) == 3
    for entry in loaded.models:
        assert entry.engine == "exllamav2"
        plan = make_plan(
            EngineSettings(
                path=loaded.weights_path(entry),
                context_length=entry.context_length,
                slots=entry.slots,
                threads=1,
                device=entry.device,
                quant=entry.quant,
                cache_tokens=entry.cache_tokens,
                speculation=Speculation(None, entry.draft_tokens) if entry.draft else None,
            ),
            is_quantised=entry.quant != "f16",
        )
        assert plan.devices == [0]
