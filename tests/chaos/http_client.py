"""The clients that speak HTTP: streams, whole answers, and those that leave or read slowly."""

import http.client
import json
from collections.abc import Callable
from typing import Protocol

from tests.chaos.asks import Answer, Ask


class Served(Protocol):
    @property
    def port(self) -> int: ...


_SILENCE_S = 60.0
"""A stream is never silent for so long: it gets a comment each second."""
_WHOLE_S = 150.0
BROKEN = (OSError, http.client.HTTPException)
"""What a connection that breaks raises."""


class Connection:
    """One request on a connection of its own."""

    def __init__(self, service: Served, timeout_s: float = _SILENCE_S) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", service.port, timeout=timeout_s)
        self.response: http.client.HTTPResponse | None = None

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        self._http.request("GET", path, headers=headers)
        self.response = self._http.getresponse()
        return self.response

    def post(self, path: str, body: object, **headers: str) -> http.client.HTTPResponse:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._http.request("POST", path, payload, {"Content-Type": "application/json", **headers})
        self.response = self._http.getresponse()
        return self.response

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
        self._http.close()


def stream(
    service: Served,
    ask: Ask,
    answer: Answer,
    on_event: Callable[[int], None] = lambda num_events: None,
    **headers: str,
) -> None:
    """Ask for a stream and read it; `on_event` is called with the number of events so far.
    Raises what that raises, OSError, http.client.HTTPException."""
    connection = Connection(service)
    try:
        response = connection.post("/v1/completions", ask.body(stream=True), **headers)
        _read(response, answer, on_event)
    finally:
        connection.close()


def resume(
    service: Served, answer: Answer, on_event: Callable[[int], None] = lambda num_events: None
) -> None:
    """Read the rest of a stream that was cut. Raises OSError, http.client.HTTPException."""
    assert answer.last_event_id is not None
    answer.error = None
    request_id = answer.last_event_id.rpartition(":")[0]
    connection = Connection(service)
    try:
        path = f"/v1/requests/{request_id}/events"
        response = connection.get(path, **{"Last-Event-ID": answer.last_event_id})
        _read(response, answer, on_event)
    finally:
        connection.close()


def _read(
    response: http.client.HTTPResponse, answer: Answer, on_event: Callable[[int], None]
) -> None:
    answer.status = response.status
    if response.status != 200:
        answer.error = json.loads(response.read())["error"]
        return
    num_events, event_id = 0, ""
    on_event(0)
    while line := response.readline():
        if line.startswith(b"id: "):
            event_id = line[4:].strip().decode()
        elif line.startswith(b"data: [DONE]"):
            answer.is_done = True
            return
        elif line.startswith(b"data: "):
            message = json.loads(line[6:])
            if "error" in message:
                answer.error = message["error"]
                return
            answer.add(message)
            answer.last_event_id = event_id or answer.last_event_id
            num_events += 1
            on_event(num_events)


def cancel(service: Served, request_id: str) -> None:
    """404 = it has ended by now. A web process that dies meanwhile has not cancelled."""
    connection = Connection(service)
    try:
        connection.post(f"/v1/requests/{request_id}/cancel", {}).read()
    except BROKEN:
        pass
    finally:
        connection.close()


def whole(service: Served, ask: Ask, answer: Answer) -> None:
    """Ask for one whole answer. Raises OSError, http.client.HTTPException."""
    connection = Connection(service, _WHOLE_S)
    try:
        response = connection.post("/v1/completions", ask.body(stream=False))
        message = json.loads(response.read())
        answer.status = response.status
        if response.status == 200:
            answer.add(message)
            answer.is_done = True
        else:
            answer.error = message["error"]
    finally:
        connection.close()
