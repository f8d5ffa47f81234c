"""Requests as plain HTTP, for what the openai client does not show: headers and refusals."""

import http.client
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shared import api_keys, names
from tests.conftest import Service, wait_for


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: Any

    @property
    def error(self) -> Any:
        return self.body["error"]


def complete(
    service: Service, request_id: str = "", *, key: str = "", prompt: str = "5", **fields: Any
) -> Answer:
    """A completion of counter-small; `key` is the API key, "" = none."""
    body = {"model": "counter-small", "prompt": prompt, "temperature": 0, "max_tokens": 2, **fields}
    headers = {"x-request-id": request_id} if request_id else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    answer = Answer(response.status, found, json.loads(response.read()))
    connection.close()
    return answer


def owner_of(key: str) -> str:
    """Whose requests those of an API key are, where keys are not checked."""
    return f"key-{api_keys.digest(key)[:24]}"


class Senders:
    """Threads that send requests and wait for their answers."""

    def __init__(self, service: Service, num_threads: int = 128) -> None:
        self._service = service
        self._pool = ThreadPoolExecutor(num_threads)

    def send(self, request_id: str, **fields: Any) -> "Future[Answer]":
        """Send a request, and return when it has been admitted: later ones come after it."""
        future = self._pool.submit(complete, self._service, request_id, **fields)
        job_key = names.job_key(request_id)
        wait_for(lambda: future.done() or self._service.redis.exists(job_key), "it is admitted", 60)
        return future

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def order_of_ends(service: Service, model: str, prefix: str) -> list[str]:
    """Ids of the requests that have ended, as the replica's log has them."""
    found = []
    for line in service.log(f"replica-{model}").splitlines():
        if '"request done"' in line:
            request_id = json.loads(line)["request_id"]
            if request_id.startswith(prefix):
                found.append(request_id)
    return found
