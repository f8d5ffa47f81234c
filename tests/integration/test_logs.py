"""The log files of a running service: one line a request, and nothing that is not to be there."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simple_websocket import Client

from tests.conftest import TEST_FILES, Service, running_service, wait_for
from tests.support.admin_client import Completion, load
from tests.support.embedding_model import write_mean
from tests.support.paused_replica import stopped
from tests.support.sse_reader import Answer

_KEY = "sk-very-secret"
_WORD = "Rumpelstilzchen"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environ = {"LLMIS_LOG_LEVEL": "debug", "LLMIS_WEB_WORKERS": "2"}
    with running_service(tmp_path_factory.mktemp("logs"), environ=environ) as running:
        yield running


def _lines(service: Service, name: str = "web") -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log(name).splitlines() if line.startswith("{")]


def _requests(service: Service, prefix: str) -> list[dict[str, Any]]:
    return [
        line for line in _lines(service)
        if line["message"] == "request" and line["request_id"].startswith(prefix)
    ]  # fmt: skip


def _line(service: Service, request_id: str) -> dict[str, Any]:
    (line,) = wait_for(lambda: _requests(service, request_id), f"the line of {request_id}")
    assert isinstance(line, dict)
    return line


def _ask(service: Service, request_id: str, path: str, body: Any = None, key: str = "") -> int:
    headers = {"x-request-id": request_id, "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    payload = body if isinstance(body, str) else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, payload, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "counter", "prompt": "5", "max_tokens": 3, "temperature": 0, **fields}


def test_every_kind_of_request_has_exactly_one_line(logged: Service) -> None:
    write_mean(TEST_FILES / "models" / "mean.gguf")
    load(logged, "mean", path="mean.gguf")
    chat = {"model": "counter", "messages": [{"role": "user", "content": "5"}], "max_tokens": 3}
    embedding = {"model": "mean", "input": "5"}
    asked: dict[str, tuple[str, Any, str]] = {
        "all-whole": ("/v1/completions", _body(), "finished"),
        "all-stream": ("/v1/completions", _body(stream=True), "finished"),
        "all-chat": ("/v1/chat/completions", chat, "finished"),
        "all-chat-stream": ("/v1/chat/completions", {**chat, "stream": True}, "finished"),
        "all-embed": ("/v1/embeddings", embedding, "finished"),
        "all-tokenize": ("/tokenize", {"model": "counter", "prompt": "5 6"}, "finished"),
        "all-detokenize": ("/detokenize", {"model": "counter", "tokens": [5, 6]}, "finished"),
        "all-models": ("/v1/models", None, "finished"),
        "all-no-model": ("/v1/completions", _body(model="none"), "rejected"),
        "all-no-json": ("/v1/completions", "{", "rejected"),
        "all-too-long": ("/v1/completions", _body(prompt="5 " * 3000), "failed"),
        "all-no-route": ("/v1/none", None, "rejected"),
        "all-health": ("/healthz", None, "finished"),
    }
    statuses = {name: _ask(logged, name, path, body) for name, (path, body, _) in asked.items()}
    wait_for(lambda: len(_requests(logged, "all-")) >= len(asked), "a line for each")
    lines = {line["request_id"]: line for line in _requests(logged, "all-")}
    assert len(_requests(logged, "all-")) == len(lines) == len(asked)
    for name, (path, body, outcome) in asked.items():
        line = lines[name]
        method = "GET" if body is None else "POST"
        assert line["route"] == f"{method} {'?' if path == '/v1/none' else path}"
        assert (line["status"], line["outcome"]) == (statuses[name], outcome), name
        assert line["owner"] == "anonymous"
        assert line["total_ms"] > 0
    assert lines["all-health"]["level"] == "debug"
    assert lines["all-no-model"]["error"] == "model_not_found"
    assert lines["all-too-long"]["error"] == "context_length_exceeded"
    for name in ("all-whole", "all-stream"):
        expected = {"model": "counter", "kind": "completion", "finish_reason": "length",
                    "prompt_tokens": 2, "completion_tokens": 3, "attempts": 1}  # fmt: skip
        assert lines[name].items() >= expected.items()
        assert 0 < lines[name]["ttft_ms"] <= lines[name]["total_ms"]
        assert lines[name]["queue_ms"] >= 0
    assert lines["all-embed"].items() >= {"kind": "embedding", "completion_tokens": 0}.items()


def test_a_static_file_has_a_line(logged: Service) -> None:
    assert _ask(logged, "static", "/static/chat.js") == 200
    line = _line(logged, "static")
    assert (line["route"], line["status"]) == ("GET /static/<path:filename>", 200)
    assert line["outcome"] == "finished"


def test_a_stream_has_its_line_at_its_end(logged: Service) -> None:
    body = _body(stream=True, max_tokens=2000)
    replicas = logged.pids("worker.replica", "counter@")
    answer = Answer(logged, "completions", body, **{"x-request-id": "left-1"})
    answer.read(1)
    with stopped(*replicas):
        assert not _requests(logged, "left-1")
        answer.close()
        line = _line(logged, "left-1")
    assert (line["outcome"], line["status"]) == ("client_gone", 200)
    assert line["prompt_tokens"] == 2


def test_requests_over_a_websocket_have_a_line_each(logged: Service) -> None:
    ws = Client.connect(f"ws://127.0.0.1:{logged.port}/v1/ws")
    frames = [
        {"id": "a", "request_id": "ws-1", "endpoint": "completions", "body": _body()},
        {"id": "b", "request_id": "ws-2", "endpoint": "completions", "body": _body(model="none")},
        {"id": "c", "request_id": "ws-3", "endpoint": "completions", "body": _body(stop=7)},
    ]
    for frame in frames:
        ws.send(json.dumps({"type": "request", **frame}))
    ws.send(json.dumps({"type": "request", "id": 17}))
    ws.send(json.dumps({"type": "ping"}))
    ended = 0
    while ended < 4:
        frame = json.loads(ws.receive(timeout=30) or "")
        ended += frame["type"] in ("done", "error")
    ws.close()
    found = {name: _line(logged, name) for name in ("ws-1", "ws-2", "ws-3")}
    assert [found[n]["outcome"] for n in found] == ["finished", "rejected", "rejected"]
    assert [found[n]["status"] for n in found] == [200, 404, 400]
    assert found["ws-1"].items() >= {"route": "WS /v1/ws", "completion_tokens": 3}.items()
    of_ws = [x for x in _lines(logged) if x.get("route") == "WS /v1/ws"]
    assert len(of_ws) == 4, "the frame that is no request has one, ping and connection none"


def test_a_cancelled_websocket_request_is_cancelled(logged: Service) -> None:
    ws = Client.connect(f"ws://127.0.0.1:{logged.port}/v1/ws")
    body = _body(model="counter-small", max_tokens=500)
    ws.send(json.dumps({"type": "request", "id": "a", "request_id": "ws-cancel",
                        "endpoint": "completions", "body": body}))  # fmt: skip
    ws.send(json.dumps({"type": "cancel", "id": "a"}))
    while json.loads(ws.receive(timeout=30) or "")["type"] not in ("cancelled", "done"):
        pass
    ws.close()
    line = _line(logged, "ws-cancel")
    assert line["outcome"] in ("cancelled", "finished")
    assert (line["outcome"] == "cancelled") is (line.get("error") == "request_cancelled")


def test_who_comes_back_has_a_line_of_the_same_id(logged: Service) -> None:
    _ask(logged, "back-1", "/v1/completions", _body(stream=True))
    assert _ask(logged, "other", "/v1/requests/back-1/events") == 200
    lines = wait_for(lambda: len(found := _requests(logged, "back-1")) == 2 and found, "both")
    assert [line["route"] for line in lines] == [
        "POST /v1/completions", "GET /v1/requests/<request_id>/events"]  # fmt: skip


def test_all_processes_name_the_request(logged: Service) -> None:
    _ask(logged, "named-1", "/v1/completions", _body())
    lines = wait_for(
        lambda: [x for x in _lines(logged, "replica-counter") if x.get("request_id") == "named-1"],
        "the replica's line",
    )
    done = next(x for x in lines if x["message"] == "request done")
    assert done.items() >= {"outcome": "finished", "completion_tokens": 3, "attempt": 0}.items()
    assert done["slot_ms"] > 0
    assert done["replica"]


def test_no_file_has_a_prompt_an_answer_a_key_or_a_header(logged: Service) -> None:
    chat = {"model": "counter", "messages": [{"role": "user", "content": f"{_WORD} 17"}],
            "max_tokens": 3, "temperature": 0}  # fmt: skip
    assert _ask(logged, "secret-1", "/v1/chat/completions", chat, _KEY) == 200
    bad = [{**chat, "messages": [{"role": _WORD, "content": _WORD}]}, {**chat, _WORD: _WORD},
           {**chat, "max_tokens": _WORD}, f'{{"{_WORD}": ']  # fmt: skip
    for i, body in enumerate(bad):
        assert _ask(logged, f"secret-bad-{i}", "/v1/chat/completions", body, _KEY) == 400
    # Bytes in Redis that are neither a job nor an event.
    broken = b"\x85" + _WORD.encode()
    channel = next(iter(logged.redis.pubsub_channels("llmis:hub:*")))
    logged.redis.publish(channel, broken)
    with socket.create_connection(("127.0.0.1", logged.port)) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization {_KEY}\r\n\r\n".encode())
        raw.recv(1000)
    line = _line(logged, "secret-1")
    assert line["owner"] != "anonymous"
    wait_for(lambda: "undecodable message" in logged.log("web"), "the broken message is seen")
    wait_for(lambda: "request could not be read" in logged.log("web"), "the broken header is seen")
    for path in (logged.data_dir / "logs").glob("*.log"):
        text = path.read_text()
        assert _WORD not in text, path
        assert _KEY not in text, path
        assert " 18 19 20" not in text, path


def test_nothing_else_logs_requests(logged: Service) -> None:
    _ask(logged, "once-1", "/v1/completions", _body())
    _line(logged, "once-1")
    assert sum('"once-1"' in line for line in logged.log("web").splitlines()) == 1
    assert "HTTP/1.1" not in logged.log("web")


def test_hostile_text_in_a_request_is_no_line_of_its_own(logged: Service) -> None:
    forged = '\n{"message": "request", "request_id": "forged"}\u2028'
    _ask(logged, "forge-1", "/v1/completions", _body(model=forged))
    _line(logged, "forge-1")
    assert not _requests(logged, "forged")


def test_prompts_are_logged_by_name_alone(tmp_path: Path) -> None:
    with running_service(tmp_path, environ={"LLMIS_LOG_PROMPTS": "true"}) as service:
        Completion(service, "counter", 3, **{"n": 2}).read()
        Completion(service, "counter", 1100, prompt="99" + " 99" * 50).read()
        both = wait_for(lambda: len(x := _prompted(service)) > 3 and x[-2:], "both lines")
        assert both[0]["prompt"] == "5"
        assert both[0]["answers"] == [" 6 7 8", " 6 7 8"]
        assert len(both[1]["answers"][0]) == 4000
        for name in ("web", "agent", "replica-counter"):
            assert any("log_prompts is on" in line["message"] for line in _lines(service, name))


def _prompted(service: Service) -> list[dict[str, Any]]:
    return [line for line in _lines(service) if "prompt" in line]
