"""HTTP to the service: JSON there and back, and server-sent events as they come.

No proxy is ever used: `http.client` knows none. Every call has a connection of its own, which
is closed when the call ends, however it ends. For a stream that is what cancels the request.
"""

import http.client
import json
from collections.abc import Generator, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from cli.errors import ServiceError, Unreachable

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 60.0
_SILENCE_TIMEOUT_S = 300.0
"""The service sends a comment every `keepalive_s` (10 s) while it has nothing to say."""
_BLOCK_BYTES = 1 << 16
_DONE = "[DONE]"


class Client:
    """A service at one address."""

    def __init__(
        self, url: str, key: str = "", *, answer_timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> None:
        """`key`: the API key; empty = none. Raises ValueError when `url` is not
        http(s)://host[:port][/prefix], or the key is no header's value."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not like http://127.0.0.1:8000")
        if not key.isascii() or not key.isprintable():
            raise ValueError("LLMIS_API_KEY has characters that no API key has")
        self._key = key
        self.url = url.rstrip("/")
        self._is_https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._answer_timeout_s = answer_timeout_s
        self._prefix = parts.path.rstrip("/")

    def get(self, path: str, *, accept: int | None = None) -> Any:
        """Raises ServiceError, Unreachable. `accept` is an error status that is an answer too."""
        return self._whole("GET", path, None, accept)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raises ServiceError, Unreachable."""
        return self._whole("POST", path, body)

    def stream(self, path: str, body: dict[str, Any]) -> Generator[Any, None, None]:
        """Post and yield the JSON of each event up to `[DONE]`.

        Use it under `contextlib.closing`: closing it closes the connection. Raises ServiceError
        for an HTTP error, for an error event, and for an end without `[DONE]`; Unreachable.
        """
        connection = self._connect(_SILENCE_TIMEOUT_S)
        try:
            response = self._send(connection, "POST", path, body)
            if response.status != http.HTTPStatus.OK:
                raise self._error(response.status, self._read(response))
            with response:
                for data in event_data(self._blocks(response)):
                    if data == _DONE:
                        return
                    event = self._decode(data)
                    # An object of the service may have an `error` of its own; this is none.
                    if isinstance(event, dict) and event.get("error") and "object" not in event:
                        raise ServiceError(_message(event) or "the service reports an error")
                    yield event
            raise ServiceError(f"{self.url} broke off before the answer was whole")
        finally:
            connection.close()

    # -- one exchange ------------------------------------------------------------------------

    def _whole(
        self, method: str, path: str, body: dict[str, Any] | None, accept: int | None = None
    ) -> Any:
        connection = self._connect(self._answer_timeout_s)
        try:
            response = self._send(connection, method, path, body)
            payload = self._read(response)
            if response.status >= 300 and response.status != accept:
                raise self._error(response.status, payload)
            return self._decode(payload)
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as exc:
            raise Unreachable(
                f"no service at {self.url} ({exc.strerror or exc}). Start it with `llmis up`, "
                "or name another address with --url or LLMIS_URL."
            ) from exc
        connection.sock.settimeout(timeout_s)
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: dict[str, Any] | None,
    ) -> http.client.HTTPResponse:
        payload = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._prefix + path, payload, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise self._lost(exc) from exc

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise self._lost(exc) from exc

    def _blocks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The body as it comes. Reads alone are guarded: what readers raise is theirs."""
        while True:
            try:
                block = response.read1(_BLOCK_BYTES)
            except (OSError, http.client.HTTPException) as exc:
                raise self._lost(exc) from exc
            if not block:
                return
            yield block

    # -- what went wrong ---------------------------------------------------------------------

    def _lost(self, exc: Exception) -> Unreachable:
        if isinstance(exc, TimeoutError):
            return Unreachable(f"{self.url} is silent. See the logs of the service.")
        return Unreachable(f"the connection to {self.url} was lost: {exc or type(exc).__name__}")

    def _decode(self, payload: str | bytes) -> Any:
        try:
            return json.loads(payload)
        except ValueError as exc:
            raise ServiceError(f"{self.url} does not answer like llmis: not JSON") from exc

    def _error(self, status: int, payload: bytes) -> ServiceError:
        try:
            message = _message(json.loads(payload))
        except ValueError:
            message = None
        unknown = f"{self.url} answered with status {status}; is that llmis?"
        return ServiceError(message or unknown, status)


def _message(body: Any) -> str | None:
    """The message of an OpenAI-shaped error body."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) and message else None


def event_data(blocks: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event, from blocks that end anywhere.

    https://html.spec.whatwg.org/multipage/server-sent-events.html, less the fields that the
    service never sends and the line end CR.
    """
    lines: list[bytes] = []
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                lines.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and lines:
                yield b"\n".join(lines).decode(errors="replace")
                lines = []
