"""The admin API as the tests use it: plain HTTP, decoded answers."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.conftest import Service, wait_for


def admin(service: Service, path: str, body: Any = None) -> tuple[int, Any]:
    """GET, or POST when there is a body; status and decoded answer."""
    response = _send(service, path, body)
    return response.status, json.loads(response.read())


def _send(service: Service, path: str, body: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
    method = "GET" if body is None else "POST"
    payload = None if body is None else json.dumps(body)
    connection.request(method, f"/admin{path}", payload, {"Content-Type": "application/json"})
    return connection.getresponse()


def readiness(service: Service) -> tuple[int, list[str]]:
    """Status of `/readyz`, and the reasons why the service is not ready."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    return response.status, json.loads(response.read()).get("reasons", [])


def load(service: Service, name: str, **fields: Any) -> tuple[int, Any]:
    """Load a model from the counter's file and wait for the end."""
    body = {"name": name, "path": "counter.gguf", "context_length": 512, "slots": 2, **fields}
    return admin(service, "/models/load", {"wait": True, **body})


def load_again(service: Service, name: str) -> tuple[int, Any]:
    """Load a model that the service knows, as it was, and wait for the end."""
    return admin(service, "/models/load", {"name": name, "wait": True})


def unload(service: Service, name: str, **fields: Any) -> tuple[int, Any]:
    return admin(service, "/models/unload", {"name": name, "wait": True, **fields})


def progress(service: Service, path: str, body: Any) -> Iterator[Any]:
    """The events of a streamed operation."""
    for line in _send(service, path, {**body, "stream": True}):
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def model(service: Service, name: str) -> Any:
    """The admin view of a model, or None."""
    _, answer = admin(service, "/models")
    return next((view for view in answer["data"] if view["id"] == name), None)


def wait_for_state(service: Service, name: str, state: str, timeout_s: float = 60.0) -> Any:
    def found() -> Any:
        view = model(service, name)
        return view if view and view["state"] == state else None

    return wait_for(found, f"{name} is {state}", timeout_s)


class Completion:
    """A streamed completion of a counter model, read piece by piece."""

    def __init__(
        self, service: Service, model: str, num_tokens: int, start: int = 5, **fields: Any
    ) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
        body = {"model": model, "prompt": str(start), "max_tokens": num_tokens,
                "temperature": 0, "stream": True, **fields}  # fmt: skip
        self.connection.request("POST", "/v1/completions", json.dumps(body))
        self.response = self.connection.getresponse()
        self.request_id = str(self.response.headers["x-request-id"])
        self.text = ""
        self.comments: list[str] = []
        self.error: Any = None
        self.is_done = False

    def read(self, num_events: int | None = None) -> "Completion":
        """Read so many events, or all that come."""
        seen = 0
        if self.response.status != 200:
            self.error = json.loads(self.response.read())["error"]
            return self
        while num_events is None or seen < num_events:
            line = self.response.readline().decode()
            if not line:
                break
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
            elif line.startswith("data: [DONE]"):
                self.is_done = True
            elif line.startswith("data: "):
                seen += 1
                event = json.loads(line[6:])
                if "error" in event:
                    self.error = event["error"]
                else:
                    self.text += event["choices"][0]["text"]
        return self

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def read_together(streams: list[Completion]) -> list[str]:
    """The texts of all: one that is not read while another is would be cut off some day."""
    with ThreadPoolExecutor(len(streams)) as pool:
        return [stream.text for stream in pool.map(Completion.read, streams)]


_LAZY = """
[[models]]
name = "{name}"
path = "counter.gguf"
context_length = {context_length}
slots = 2
strip_leading_space = true
preload = false
{more}
"""


def lazy_models(*names: str, more: str = "", context_length: int = 16384) -> str:
    fields = {"more": more, "context_length": context_length}
    return "".join(_LAZY.format(name=name, **fields) for name in names)
