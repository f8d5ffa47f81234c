"""One request over real HTTP, and all that comes back."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.conftest import Service


@dataclass(frozen=True)
class Exchange:
    status: int
    headers: list[tuple[str, str]]
    """As they were sent."""
    body: bytes

    def header(self, name: str) -> str:
        return next((v for key, v in self.headers if key.lower() == name.lower()), "")

    @property
    def request_id(self) -> str:
        return self.header("x-request-id")

    @property
    def head(self) -> str:
        return f"{self.status} {self.header('content-type')}"


def exchange(
    service: Service,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    """`body`: bytes, or what is sent as JSON."""
    sent = {"Content-Type": "application/json"} if body is not None else {}
    payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
    try:
        connection.request(method, path, payload, {**sent, **(headers or {})})
        response = connection.getresponse()
        return Exchange(response.status, response.getheaders(), response.read())
    finally:
        connection.close()
