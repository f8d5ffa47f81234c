"""A client that reads server-sent events with their ids, one by one."""

import http.client
import json
from typing import Any, NamedTuple

from tests.conftest import Service


class SseEvent(NamedTuple):
    id: str
    data: str

    @property
    def text(self) -> str:
        chunk = {} if self.data == "[DONE]" else json.loads(self.data)
        return "".join(choice["text"] for choice in chunk.get("choices", []))


class Answer:
    """One HTTP request and what has been read of its answer."""

    def __init__(
        self,
        service: Service,
        path: str,
        body: Any = None,
        *,
        last_id: str = "",
        owner: str = "",
        **headers: str,
    ) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if last_id:
            sent["Last-Event-ID"] = last_id
        if owner:
            sent["Authorization"] = f"Bearer {owner}"
        payload = None if body is None else json.dumps(body)
        self._connection.request("POST" if payload else "GET", f"/v1/{path}", payload, sent)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.request_id = self._response.headers["x-request-id"]
        self.is_replay = self._response.headers["Idempotent-Replayed"] == "true"
        self.events: list[SseEvent] = []
        self.last_id = last_id
        """Of the last event that had one: the end has none."""

    def json(self) -> Any:
        return json.loads(self._response.read())

    def read(self, num_events: int | None = None) -> "Answer":
        """Read so many events, or all that come."""
        wanted = None if num_events is None else len(self.events) + num_events
        while wanted is None or len(self.events) < wanted:
            line = self._response.readline().decode()
            if not line:
                break
            if line.startswith("id: "):
                self.last_id = line[4:].strip()
            elif line.startswith("data: "):
                self.events.append(SseEvent(self.last_id, line[6:].strip()))
        return self

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def is_done(self) -> bool:
        return bool(self.events) and self.events[-1].data == "[DONE]"

    def close(self) -> None:
        self._response.close()
        self._connection.close()
