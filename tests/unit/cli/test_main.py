"""`llmis`: listings, errors, exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.commands import start
from shared.version import VERSION
from tests.conftest import ROOT, free_port
from tests.support import fake_service
from tests.support.cli_answers import (
    FAILED,
    HOSTILE,
    MODEL,
    NODE,
    api_error,
    chat_events,
    completion_events,
    run,
)
from tests.support.fake_service import FakeService, Reply

LISTINGS = [
    (["ps"], "GET /admin/models"),
    (["models", "list"], "GET /admin/models"),
    (["nodes"], "GET /admin/nodes"),
]


def _lines(text: str) -> list[str]:
    """The lines, with one space between two words."""
    return [" ".join(line.split()) for line in text.splitlines()]


# -- listings ------------------------------------------------------------------------------------


def test_ps_lists_the_replicas(fake: FakeService) -> None:
    result = run("ps")
    assert result.exit_code == 0
    header, ready, loading = _lines(result.stdout)
    assert header == "ID MODEL NODE STATE SLOTS MEMORY TOKENS/S UPTIME"
    assert ready == "counter-abc123 counter node-1 ready 3/4 1.5 GiB 41.3 1d 03h"
    assert loading == (
        "counter-def456 counter node-1 loading (reading weights 42 %) 0/4 ~1.0 GiB - 1d 03h"
    )


def test_models_list_shows_state_and_reason(fake: FakeService) -> None:
    loading = {**MODEL, "id": "next", "state": "loading", "replicas": []}
    loading["load"] = {"id": "load-1", "stage": "reading weights", "fraction": 0.5}
    fake.replies["GET /admin/models"] = Reply({"data": [MODEL, FAILED, loading]})
    _, good, bad, coming = _lines(run("models", "list").stdout)
    assert good == "counter ready 2 3/8 5 41.3 2048 llamacpp Q4_K_M cpu pinned"
    assert "failed (is not a GGUF file)" in bad
    assert bad.endswith("600 s")
    assert "loading (reading weights 50 %)" in coming


def test_nodes_lists_the_machines(fake: FakeService) -> None:
    _, row = _lines(run("nodes").stdout)
    assert row == (
        "node-1 0.1.0 1d 03h 16 48.0 GiB / 64.0 GiB 2.0 GiB cpu 48.0 GiB / 64.0 GiB 2 counter"
    )


@pytest.mark.parametrize(("arguments", "route"), LISTINGS)
def test_json_is_the_api_s_own(fake: FakeService, arguments: list[str], route: str) -> None:
    result = run(*arguments, "--json")
    assert json.loads(result.stdout) == fake.replies[route].body


@pytest.mark.parametrize(("arguments", "route"), LISTINGS)
def test_an_empty_listing_says_so_beside_stdout(
    fake: FakeService, arguments: list[str], route: str
) -> None:
    fake.replies[route] = Reply({"object": "list", "data": []})
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.strip()


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize(("arguments", "route"), [*LISTINGS, (["status"], "GET /admin/models")])
def test_hostile_names_reach_the_terminal_harmless(
    fake: FakeService, arguments: list[str], route: str, is_json: bool
) -> None:
    model = {**MODEL, "id": HOSTILE, "state": "failed", "error": api_error(HOSTILE)}
    fake.replies["GET /admin/models"] = Reply({"data": [model]})
    fake.replies["GET /admin/nodes"] = Reply({"data": [{**NODE, "id": HOSTILE}]})
    result = run(*arguments, *(["--json"] if is_json else []))
    assert result.exit_code == 0
    assert "[red]x[/red]" in result.stdout
    assert not set("\x1b\x07\x9b\u202e") & set(result.output)


def test_objects_of_another_version_may_lack_fields_and_have_others(fake: FakeService) -> None:
    known = {"state": "ready", "colour": "green"}
    model = {"id": "m", **known, "replicas": [{"id": "r", **known}]}
    fake.replies["GET /admin/models"] = Reply({"data": [model]})
    fake.replies["GET /admin/nodes"] = Reply({"data": [{"id": "n", "colour": "green"}]})
    for arguments, _ in [*LISTINGS, (["status"], "")]:
        assert run(*arguments).exit_code == 0


# -- status --------------------------------------------------------------------------------------


def test_status_is_one_screen(fake: FakeService) -> None:
    result = run("status")
    assert result.exit_code == 0
    for expected in (f"llmis {VERSION} at {fake.url}", "ready", "node-1", "counter", "broken"):
        assert expected in result.stdout


def test_status_says_why_the_service_is_not_ready(fake: FakeService) -> None:
    reasons = ["Redis does not answer", "no replica is ready"]
    fake.replies["GET /readyz"] = Reply({"status": "not ready", "reasons": reasons}, 503)
    fake.replies["GET /admin/nodes"] = fake_service.error("The queue is not reachable.", 503)
    result = run("status")
    assert result.exit_code == 1
    assert "not ready Redis does not answer; no replica is ready" in result.stdout
    assert "nodes: The queue is not reachable." in result.stdout
    assert "counter" in result.stdout


def test_status_as_json(fake: FakeService) -> None:
    body = json.loads(run("status", "--json").stdout)
    assert body["readyz"] == {"status": "ready"}
    assert body["models"] == fake.replies["GET /admin/models"].body


def test_a_service_of_another_version_is_named(fake: FakeService) -> None:
    fake.replies["GET /version"] = Reply({"version": "9.9.9"})
    result = run("status")
    assert "llmis 9.9.9" in result.stdout
    assert f"this command is {VERSION}" in result.stderr


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *(["ps"], ["nodes"], ["models", "list"], ["status"], ["chat"]),
        *(["models", "load", "x"], ["models", "unload", "x"], ["complete", "x"]),
    ],
)
def test_a_service_that_is_not_there_is_one_line_with_the_way_out(arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = run(*arguments, "--url", url)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"llmis: no service at {url} (Connection refused)")
    assert "llmis up" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in LISTINGS])
def test_an_error_of_the_service_is_one_line(fake: FakeService, arguments: list[str]) -> None:
    for route in ("GET /admin/models", "GET /admin/nodes"):
        fake.replies[route] = fake_service.error(f"The queue\nis down. {HOSTILE}", 503)
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("llmis: The queue is down. [red]x[/red] ␛]0;owned␇")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("body", [b"<html>", {"detail": "no"}, {"error": "no"}])
def test_another_server_is_recognized(fake: FakeService, body: Any) -> None:
    fake.replies["GET /admin/models"] = Reply(body, 404)
    assert "is that llmis?" in run("ps").stderr


@pytest.mark.parametrize("body", [b"<html>", [], {"data": [{"id": 7}]}, {"data": {}}, None])
def test_an_answer_that_is_not_understood_is_one_line(fake: FakeService, body: Any) -> None:
    fake.replies["GET /admin/models"] = Reply(body)
    result = run("ps")
    assert result.exit_code == 1
    assert result.stderr.startswith("llmis: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonsense"], ["ps", "--nonsense"], ["models", "load"], ["complete"]),
        *(["ps", "--url", "ftp://x"], ["ps", "--url", "x"], ["ps", "--url", "http://x:port"]),
        *(["models", "load", "x", "--slots", "0"], ["complete", "x", "--temperature", "9"]),
        ["doctor", "--url", "x"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_version_and_help() -> None:
    assert VERSION in run("--version").stdout
    for command in (
        "up",
        "web",
        "agent",
        "flower",
        "ps",
        "models",
        "nodes",
        "chat",
        "complete",
        "status",
        "check",
        "doctor",
    ):
        assert run(command, "--help").exit_code == 0
        assert command in run("-h").stdout


def test_the_command_is_installed_beside_python() -> None:
    command = Path(sys.executable).parent / "llmis"
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert VERSION in result.stdout


# -- where the service is ------------------------------------------------------------------------


def test_a_key_that_would_be_another_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMIS_API_KEY", "sk-x\r\nX-Other: 1")
    result = run("ps", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, "LLMIS_API_KEY" in result.stderr) == (2, True)
    assert "sk-x" not in result.stderr


def test_the_address_is_that_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    (tmp_path / "llmis.toml").write_text(
        f'models = []\nauth = true\nhost = "0.0.0.0"\nport = {port}'
    )
    monkeypatch.delenv("LLMIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    assert f"http://127.0.0.1:{port}" in run("ps").stderr
    monkeypatch.setenv("LLMIS_HOST", "::")
    assert f"http://[::1]:{port}" in run("ps").stderr


def test_outside_of_the_source_tree_its_settings_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LLMIS_URL", "LLMIS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMIS_PORT", str(port := free_port()))
    assert f"http://127.0.0.1:{port}" in run("ps").stderr


def test_broken_settings_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llmis.toml").write_text('port = "x"')
    monkeypatch.delenv("LLMIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    result = run("ps")
    assert result.exit_code == 1
    assert result.stderr.startswith("llmis: port = 'x'")
    assert "--url" in result.stderr


def test_a_prefix_is_part_of_the_address(fake: FakeService) -> None:
    fake.replies["GET /llm/admin/nodes"] = Reply({"data": [NODE]})
    assert "node-1" in run("nodes", "--url", f"{fake.url}/llm/").stdout


def test_no_proxy_is_asked(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run("nodes").exit_code == 0


# -- complete ------------------------------------------------------------------------------------


def test_complete_streams_the_text_to_stdout(fake: FakeService) -> None:
    fake.replies["POST /v1/completions"] = Reply(events=completion_events(" is", " Paris", HOSTILE))
    options = ("--max-tokens", "5", "--temperature", "0", "--stop", "a", "--stop", "b")
    result = run("complete", "The capital", *options)
    assert (result.exit_code, result.stdout) == (0, f" is Paris{HOSTILE}")
    assert fake.bodies("POST /v1/completions") == [
        {
            "model": "counter",
            "prompt": "The capital",
            "max_tokens": 5,
            "temperature": 0.0,
            "stop": ["a", "b"],
            "stream": True,
        }
    ]
    assert fake.content_types == ["application/json"]


def test_complete_reads_its_prompt_from_stdin(fake: FakeService) -> None:
    fake.replies["POST /v1/completions"] = Reply(events=completion_events("x"))
    run("complete", "-", "--model", "m", given="two\nlines")
    assert fake.bodies("POST /v1/completions")[0]["prompt"] == "two\nlines"
    assert "GET /v1/models" not in dict(fake.requests)


@pytest.mark.parametrize("command", ["complete", "chat"])
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (['{"error": {"message": "The engine failed."}}'], "The engine failed."),
        ([], "broke off"),
        (["nonsense"], "not JSON"),
        (['{"choices": 7}'], "not understood"),
    ],
)
def test_an_answer_that_fails_on_its_way_is_one_line(
    fake: FakeService, command: str, events: list[str], expected: str
) -> None:
    begun = [completion_events("a")[0]] if command == "complete" else chat_events("a")[:2]
    path = "completions" if command == "complete" else "chat/completions"
    fake.replies[f"POST /v1/{path}"] = Reply(events=[*begun, *events])
    result = run(*([command, "x"] if command == "complete" else [command]), given="x\n")
    assert result.exit_code == 1
    assert result.stdout.strip() == "a"
    assert result.stderr.startswith("llmis: ")
    assert expected in result.stderr


def test_without_any_model_the_way_to_one_is_named(fake: FakeService) -> None:
    fake.replies["GET /v1/models"] = Reply({"data": []})
    assert "llmis models load" in run("complete", "x").stderr


def test_a_reader_that_leaves_ends_the_request_without_a_word(fake: FakeService) -> None:
    events = [completion_events("line\n")[0]] * 100_000
    fake.replies["POST /v1/completions"] = Reply(events=events, is_endless=True)
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m cli complete x | head -2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("line\nline\n", "")
    assert fake.client_gone.wait(60)


# -- starting ------------------------------------------------------------------------------------


def test_up_reports_a_bad_setting_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "llmis.toml").write_text("keepalive_s = 'often'")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    result = subprocess.run(
        [sys.executable, "-m", "cli", "up"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("llmis: keepalive_s = 'often'")


@pytest.mark.parametrize(
    ("command", "program"), [("web", "gunicorn"), ("agent", "worker.agent"), ("flower", "celery")]
)
def test_a_process_takes_the_place_of_its_command(
    command: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(start.os, "execve", lambda *call: calls.append(call))
    monkeypatch.setenv("REDIS_URL", "redis://there/0")
    assert run(command).exit_code == 0
    path, arguments, _environment = calls[0]
    assert path == sys.executable
    assert arguments[:3] == [sys.executable, "-m", program]


@pytest.mark.parametrize("command", ["web", "agent", "flower"])
def test_a_process_alone_wants_to_know_its_redis(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start.os, "execve", lambda *_call: pytest.fail("it was started"))
    monkeypatch.delenv("REDIS_URL", raising=False)
    result = run(command)
    assert result.exit_code == 1
    assert result.stderr.startswith("llmis: redis_url is empty: set REDIS_URL")
    monkeypatch.setenv("LLMIS_KEEPALIVE_S", "often")
    assert run(command).stderr.startswith("llmis: keepalive_s = 'often'")


def test_flower_without_a_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://there/0")
    monkeypatch.setenv("LLMIS_FLOWER_PORT", "0")
    assert "LLMIS_FLOWER_PORT" in run("flower").stderr
