"""The clients that speak HTTP: streams, whole answers, and those that leave or read slowly."""

import http.client
import json
import random
import time
from collections.abc import Iterator

from tests.chaos.asks import Answer, Ask
from tests.conftest import Service

_SILENCE_S = 60.0
"""A stream is never silent for so long: it gets a comment each second."""
_WHOLE_S = 150.0


class Connection:
    """One request on a connection of its own."""

    def __init__(self, service: Service, timeout_s: float = _SILENCE_S) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", service.port, timeout=timeout_s)
        self.response: http.client.HTTPResponse | None = None

    def post(self, path: str, body: object, **headers: str) -> http.client.HTTPResponse:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._http.request("POST", path, payload, {"Content-Type": "application/json", **headers})
        self.response = self._http.getresponse()
        return self.response

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
        self._http.close()


def stream(service: Service, ask: Ask, answer: Answer, rng: random.Random) -> None:
    """Ask for a stream and read it as the kind of the client says. Raises OSError,
    http.client.HTTPException."""
    request_id = f"chaos-{rng.getrandbits(64):x}"
    leave_after = rng.randint(1, 8) if ask.kind in ("closes", "cancels") else 0
    connection = Connection(service)
    try:
        headers = {"x-request-id": request_id}
        response = connection.post("/v1/completions", ask.body(stream=True), **headers)
        answer.status = response.status
        if response.status != 200:
            answer.error = json.loads(response.read())["error"]
            return
        for num_events in _events(response, answer):
            if num_events == leave_after and ask.kind == "closes":
                answer.was_cancelled = answer.is_left = True
                return
            if num_events == leave_after and ask.kind == "cancels":
                answer.was_cancelled = True
                _cancel(service, request_id)
            if ask.kind == "reads slowly":
                time.sleep(rng.random() * 0.1)
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse, answer: Answer) -> Iterator[int]:
    """Take the events of a stream into the answer; gives their number so far."""
    num_events = 0
    while line := response.readline():
        if line.startswith(b"id: "):
            answer.last_event_id = line[4:].strip().decode()
        elif line.startswith(b"data: [DONE]"):
            answer.is_done = True
            return
        elif line.startswith(b"data: "):
            message = json.loads(line[6:])
            if "error" in message:
                answer.error = message["error"]
                return
            answer.add(message)
            num_events += 1
            yield num_events


def _cancel(service: Service, request_id: str) -> None:
    """404 = it has ended by now. A web process that dies meanwhile has not cancelled."""
    connection = Connection(service)
    try:
        connection.post(f"/v1/requests/{request_id}/cancel", {}).read()
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


def whole(service: Service, ask: Ask, answer: Answer) -> None:
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
