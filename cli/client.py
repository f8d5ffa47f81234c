"""HTTP to the service: JSON, and server-sent events.

No proxy of the environment is used. Every call has a connection of its own, so that a restarted
web tier is reached at once. It is closed when the call ends, which cancels a stream's request.
"""

import contextlib
import json
import re
import ssl
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from cli.errors import ServiceError, Unreachable

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 60.0
_SILENCE_TIMEOUT_S = 300.0
"""Between two parts of a stream. An idle service sends a comment every `keepalive_s` (10 s)."""
_DONE = "[DONE]"


class ServiceClient:
    """A service at one address. Threads may share it."""

    def __init__(
        self, url: str, key: str = "", *, answer_timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> None:
        """`key`: the API key; empty = none. `answer_timeout_s`: longest pause in an answer.

        Raises ValueError if `url` is not http(s)://host[:port][/prefix], or if the key cannot be
        the value of a header.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"{url!r} is not like http://127.0.0.1:8000")
        # A blank at either end as well: the error of httpx would show the key.
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ValueError("LLMIS_API_KEY has characters that no API key has")
        self.url = url.rstrip("/")
        host = parts.netloc.rpartition("@")[2]
        self._base = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        # Compressed events would wait in the decoder for the end of a block.
        self._headers = {"Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._answer_timeout_s = answer_timeout_s

    def get(self, path: str, *, accept: int | None = None) -> Any:
        """The decoded body. `accept`: an error status whose body is an answer, too. Raises
        ServiceError, Unreachable."""
        return self._body("GET", path, None, accept)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The decoded body. Raises ServiceError, Unreachable."""
        return self._body("POST", path, body)

    def status(self, path: str, body: dict[str, Any] | None = None) -> int:
        """HTTP status of a GET, or of a POST if there is a body. Raises Unreachable."""
        method = "GET" if body is None else "POST"
        with self._response(method, path, body, self._answer_timeout_s) as response:
            response.read()
            return response.status_code

    def stream(self, path: str, body: dict[str, Any]) -> Generator[Any, None, None]:
        """Post and yield the JSON of each event up to `[DONE]`.

        Use it under `contextlib.closing`: closing it closes the connection. Raises ServiceError
        for an HTTP error, for an error event, and for an end without `[DONE]`; Unreachable.
        """
        with self._response("POST", path, body, _SILENCE_TIMEOUT_S) as response:
            if response.status_code != HTTPStatus.OK:
                raise self._error(response.status_code, response.read())
            for data in event_data(response.iter_bytes()):
                if data == _DONE:
                    return
                event = self._decode(data)
                # Without `object` it is an error event. Objects may have a field `error`, too.
                if isinstance(event, dict) and event.get("error") and "object" not in event:
                    raise ServiceError(_field(event, "message") or "the service reports an error")
                yield event
        raise ServiceError(f"{self.url} broke off before the answer was complete")

    # -- one exchange ------------------------------------------------------------------------

    def _body(
        self, method: str, path: str, body: dict[str, Any] | None, accept: int | None = None
    ) -> Any:
        with self._response(method, path, body, self._answer_timeout_s) as response:
            payload = response.read()
        if response.status_code >= 300 and response.status_code != accept:
            raise self._error(response.status_code, payload)
        return self._decode(payload)

    @contextlib.contextmanager
    def _response(
        self, method: str, path: str, body: dict[str, Any] | None, read_timeout_s: float
    ) -> Iterator["httpx.Response"]:
        """A response whose body is still to be read, there. Raises Unreachable."""
        import httpx  # here: commands that make no request do not wait for its import

        headers = self._headers if body is None else {**self._headers, **_JSON}
        # Escaped to ASCII: an argument of the command line may hold half a surrogate pair.
        payload = None if body is None else json.dumps(body)
        timeout = httpx.Timeout(read_timeout_s, connect=_CONNECT_TIMEOUT_S)
        try:
            with self._http.stream(
                method, self._base + path, content=payload, headers=headers, timeout=timeout
            ) as response:
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL) as exc:
            raise Unreachable(
                f"no service at {self.url} ({_reason(exc)}). Start it with `llmis up`, "
                "or name another address with --url or LLMIS_URL."
            ) from exc
        except httpx.TimeoutException as exc:
            raise Unreachable(f"{self.url} is silent. See the logs of the service.") from exc
        except httpx.RequestError as exc:
            raise Unreachable(f"the connection to {self.url} was lost: {_reason(exc)}") from exc

    @cached_property
    def _http(self) -> "httpx.Client":
        import httpx

        # The system's certificates, not those of httpx. Only https needs the time to read them.
        verify = ssl.create_default_context() if self._base.startswith("https:") else False
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(trust_env=False, verify=verify, limits=limits)

    # -- errors ------------------------------------------------------------------------------

    def _decode(self, payload: str | bytes) -> Any:
        try:
            return json.loads(payload)
        except ValueError as exc:
            raise ServiceError(f"{self.url} does not answer like llmis: not JSON") from exc

    def _error(self, status: int, payload: bytes) -> ServiceError:
        try:
            body = json.loads(payload)
        except ValueError:
            body = None
        unknown = f"{self.url} answered with status {status}; is that llmis?"
        return ServiceError(_field(body, "message") or unknown, status, _field(body, "param"))


_JSON = {"Content-Type": "application/json"}


def _field(body: Any, name: str) -> str | None:
    """A field of an OpenAI-shaped error body."""
    error = body.get("error") if isinstance(body, dict) else None
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) and value else None


def _reason(exc: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(exc)) or type(exc).__name__


def event_data(blocks: Iterable[bytes]) -> Iterator[str]:
    """The data of each server-sent event, from blocks that end anywhere.

    https://html.spec.whatwg.org/multipage/server-sent-events.html, without the fields that the
    service never sends and the line end CR. Not `httpx.Response.iter_lines`: it also splits at
    U+2028 and the like, which JSON holds unescaped.
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


# -- answers -------------------------------------------------------------------------------------


class _OfferedModel(Struct, frozen=True):
    id: str
    state: str = ""
    capabilities: list[str] | None = None


class _OfferedModels(Struct, frozen=True):
    """The part of `GET /v1/models` that the commands use."""

    data: list[_OfferedModel]


class ServiceVersion(Struct, frozen=True):
    """The part of `GET /version` that the commands use."""

    version: str


class Readiness(Struct, frozen=True):
    """`GET /readyz`, with status 200 or 503."""

    status: str = ""
    reasons: list[str] = []

    @property
    def is_ready(self) -> bool:
        return self.status == "ready"


def view(raw: Any, shape: type[T]) -> T:
    """Convert a decoded answer to a type; unknown fields are skipped. Raises ServiceError."""
    try:
        return msgspec.convert(raw, shape, strict=False)
    except msgspec.ValidationError as exc:
        raise ServiceError(
            f"the service's answer is not understood: {exc}. Is its version that of this "
            "command? See `llmis status`."
        ) from exc


def choose_model(client: ServiceClient, wanted: str | None, capability: str) -> str:
    """Return `wanted`, else a ready model with the capability, else any with it. A model that is
    not loaded may not know its capabilities yet; it counts. Raises CliError."""
    if wanted:
        return wanted
    offered = view(client.get("/v1/models"), _OfferedModels).data
    models = [m for m in offered if m.capabilities is None or capability in m.capabilities]
    if offered and not models:
        raise ServiceError(f"no model of the service can do this ({capability}).")
    if not models:
        raise ServiceError("the service has no model. `llmis models load` loads one.")
    return next((model.id for model in models if model.state == "ready"), models[0].id)
