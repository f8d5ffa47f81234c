"""Closed connection → free slot, by the replica's log line about the request."""

import json
import socket
import time
from contextlib import ExitStack
from datetime import datetime

from bench import gpu_servers
from bench.gpu_served import TokenLoad
from bench.gpu_servers import GpuModel, log_lines
from bench.servers import Server

_LIMIT_S = 10.0
_NEW_TOKENS = 2000
_PROMPT_TOKENS = 200
_LONG_PROMPT_TOKENS = 6000


def run(model: GpuModel, times: int) -> dict[str, list[float]]:
    """Milliseconds by situation: alone, and among others that fill the batch."""
    with gpu_servers.llmis(model) as server:
        _cancel_one(model, server, "warm-up", 1)
        found = {"alone": [_cancel_one(model, server, f"alone-{i}", 20) for i in range(times)]}
        with ExitStack() as others:
            for i in range(model.slots // 2 - 1):
                others.enter_context(_open(model, server, f"other-{i}"))
            found[f"in a batch of {model.slots // 2}"] = [
                _cancel_one(model, server, f"among-{i}", 5) for i in range(times)
            ]
        found["while its prompt is read"] = [
            _cancel_one(model, server, f"prefill-{i}", 0) for i in range(times)
        ]
    return found


def _cancel_one(model: GpuModel, server: Server, label: str, num_events: int) -> float:
    request_id = f"{label}-{time.monotonic_ns()}"
    is_prefill = num_events == 0
    connection = _open(
        model, server, request_id, _LONG_PROMPT_TOKENS if is_prefill else _PROMPT_TOKENS
    )
    received = b""
    while received.count(b"data:") < num_events:
        more = connection.recv(65536)
        if not more:
            raise RuntimeError(f"the stream ended: {received!r}")
        received += more
    if is_prefill:
        time.sleep(0.01)  # on its way into the engine
    closed_at = time.time()
    connection.close()
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        for line in log_lines(model, f'"{request_id}"'):
            if line["message"] == "request done":
                return 1000 * (datetime.fromisoformat(line["ts"]).timestamp() - closed_at)
        time.sleep(0.02)
    raise RuntimeError(f"{request_id} has not ended {_LIMIT_S:g} s after its connection closed")


def _open(
    model: GpuModel, server: Server, request_id: str, prompt_tokens: int = _PROMPT_TOKENS
) -> socket.socket:
    (of_stream,) = TokenLoad("cancel", 1, 1, prompt_tokens, _NEW_TOKENS).prompts(model)
    body = {
        "model": model.kind,
        "prompt": of_stream[0],
        "max_tokens": _NEW_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nx-request-id: {request_id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(head.encode() + payload)
    return connection
