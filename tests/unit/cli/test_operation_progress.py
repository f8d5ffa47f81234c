"""`llmis models load` and `unload`."""

import json
from typing import Any

import pytest

from tests.support import fake_service
from tests.support.cli_answers import HOSTILE, api_error, run
from tests.support.fake_service import FakeService, Reply

LOAD = "POST /admin/models/load"
UNLOAD = "POST /admin/models/unload"


def state(state: str, stage: str, fraction: float, message: str = "", **more: Any) -> Any:
    """The object of a load."""
    return {
        "id": "load-1",
        "object": "model.load",
        "model": "counter",
        "state": state,
        "stage": stage,
        "fraction": fraction,
        "message": message,
        "error": None,
        **more,
    }


LOADED = [
    state("loading", "checking", 0.0),
    state("loading", "waiting for room", 0.1, "old-model is leaving"),
    state("loading", "reading weights", 0.3),
    state("loading", "reading weights", 0.6),
    state("ready", "ready", 1.0),
    "[DONE]",
]


def test_load_shows_each_stage_once_and_the_outcome(fake: FakeService) -> None:
    fake.replies[LOAD] = Reply(events=LOADED)
    result = run("models", "load", "counter")
    assert result.exit_code == 0
    assert result.stdout == "counter is ready after 0s\n"
    assert result.stderr.splitlines() == [
        "counter: checking",
        "counter: waiting for room: old-model is leaving",
        "counter: reading weights",
        "counter: ready",
    ]
    assert fake.bodies(LOAD) == [{"name": "counter", "stream": True}]
    assert fake.content_types == ["application/json"]


def test_load_sends_what_was_given(fake: FakeService) -> None:
    fake.replies[LOAD] = Reply(events=LOADED)
    options = "--path a.gguf --engine llamacpp --device cpu --quant Q4 --context-length 512"
    options += " --slots 2 --threads 0 --replicas 3 --no-pin --ttl-s 60 --node n --task embed"
    options += " --stop a --stop b"
    run("models", "load", "counter", *options.split())
    assert fake.bodies(LOAD) == [
        {
            "name": "counter",
            "path": "a.gguf",
            "engine": "llamacpp",
            "task": "embed",
            "device": "cpu",
            "quant": "Q4",
            "context_length": 512,
            "slots": 2,
            "threads": 0,
            "replicas": 3,
            "pin": False,
            "ttl_s": 60.0,
            "node": "n",
            "stop": ["a", "b"],
            "stream": True,
        }
    ]


@pytest.mark.parametrize(
    "arguments", ["a.gguf", "--path a.gguf", "a.gguf --path a.gguf", "--slots 2 a.gguf"]
)
def test_the_file_of_a_load_follows_the_name(fake: FakeService, arguments: str) -> None:
    fake.replies[LOAD] = Reply(events=LOADED)
    assert run("models", "load", "counter", *arguments.split()).exit_code == 0
    (body,) = fake.bodies(LOAD)
    assert (body["name"], body["path"]) == ("counter", "a.gguf")
    assert "path_option" not in body


def test_two_files_for_one_load_are_an_error(fake: FakeService) -> None:
    result = run("models", "load", "counter", "a.gguf", "--path", "b.gguf")
    assert result.exit_code == 2
    assert "FILE is given twice" in result.stderr
    assert not fake.bodies(LOAD)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--ttl-s", "nan"), ("--ttl-s", "inf"), ("--ttl-s", "1e18"), ("--ttl-s", "-1")],
)
def test_a_number_without_an_end_is_named_by_its_option(
    fake: FakeService, option: str, value: str
) -> None:
    result = run("models", "load", "counter", option, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr
    assert not fake.bodies(LOAD)


def test_a_load_that_fails_is_one_line(fake: FakeService) -> None:
    error = {"message": f"no room: {HOSTILE}", "type": "x", "param": None, "code": "no_room"}
    fake.replies[LOAD] = Reply(
        events=[LOADED[0], state("failed", "checking", 0.0, HOSTILE, error=error), "[DONE]"]
    )
    result = run("models", "load", "counter")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("llmis: no room: [red]x[/red] ␛]0;owned␇")
    assert "\x1b" not in result.stderr


def test_a_load_that_is_refused_is_one_line(fake: FakeService) -> None:
    fake.replies[LOAD] = fake_service.error("No node has room for 80 GiB.", 507, "no_room")
    result = run("models", "load", "counter")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "llmis: No node has room for 80 GiB.\n"


@pytest.mark.parametrize("events", [LOADED[:2], [*LOADED[:2], "[DONE]"], ["[DONE]"]])
def test_a_report_that_breaks_off_is_no_success(fake: FakeService, events: list[Any]) -> None:
    fake.replies[LOAD] = Reply(events=events)
    result = run("models", "load", "counter")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "broke off" in result.stderr


@pytest.mark.parametrize("is_failed", [False, True])
def test_json_is_the_last_state(fake: FakeService, is_failed: bool) -> None:
    last = state("failed", "checking", 0, error=api_error("no")) if is_failed else LOADED[-2]
    fake.replies[LOAD] = Reply(events=[LOADED[0], last, "[DONE]"])
    result = run("models", "load", "counter", "--json")
    assert json.loads(result.stdout) == last
    assert (result.exit_code, result.stderr) == ((1, "llmis: no\n") if is_failed else (0, ""))


def test_no_wait_returns_at_once(fake: FakeService) -> None:
    fake.replies[LOAD] = Reply(LOADED[0], 202)
    result = run("models", "load", "counter", "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "counter: loading (load-1)\n")
    assert fake.bodies(LOAD) == [{"name": "counter"}]
    assert json.loads(run("models", "load", "counter", "--no-wait", "--json").stdout) == LOADED[0]


def test_unload_drains_unless_told_otherwise(fake: FakeService) -> None:
    unloaded = state("unloaded", "", 1.0, object="model.unload")
    fake.replies[UNLOAD] = Reply(
        events=[state("unloading", "draining", 0.0, object="model.unload"), unloaded, "[DONE]"]
    )
    result = run("models", "unload", "counter")
    assert (result.exit_code, result.stdout) == (0, "counter is unloaded after 0s\n")
    run("models", "unload", "counter", "--now", "--timeout-s", "3")
    assert fake.bodies(UNLOAD) == [
        {"name": "counter", "mode": "drain", "stream": True},
        {"name": "counter", "mode": "now", "timeout_s": 3.0, "stream": True},
    ]


def test_a_bad_parameter_is_named_by_its_option(fake: FakeService) -> None:
    error = {"message": "path says where the weights are.", "param": "path"}
    fake.replies[LOAD] = Reply({"error": error}, 400)
    result = run("models", "load", "nope")
    assert result.exit_code == 1
    assert result.stderr == "llmis: path says where the weights are. (option --path)\n"


def test_a_parameter_without_an_option_is_left_to_the_message(fake: FakeService) -> None:
    fake.replies[LOAD] = Reply({"error": {"message": "name is too long.", "param": "name"}}, 400)
    assert run("models", "load", "nope").stderr == "llmis: name is too long.\n"
