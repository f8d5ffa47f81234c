"""Requests that come all the time, and what became of them. Threads, one for each client."""

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field

from cli.api import ModelView, views
from cli.client import Client
from cli.errors import CliError
from cli.generation import pieces

_PATH = "/v1/completions"
_NUM_TOKENS = 200
_PROMPT = "5"
_MAX_ERRORS = 5


@dataclass(slots=True)
class Tally:
    """What became of the requests so far."""

    num_requests: int = 0
    num_failed: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    """Tokens, of a model that counts."""
    errors: list[str] = field(default_factory=list)
    """The first ones."""


class LoadGenerator:
    """Half of its clients read streams, half whole answers."""

    def __init__(self, client: Client, num_clients: int, model: str | None = None) -> None:
        """Raises CliError when no model is ready."""
        self._client = client
        self._model = model or _ready_model(client)
        self._expected = self._ask(is_stream=False).split()
        self.is_exact = _counts(self._expected)
        """Whether each answer can be compared with what it has to be."""
        self.tally = Tally()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i % 2 == 0,), daemon=True)
            for i in range(num_clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> Tally:
        """Let the open requests end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.tally

    def _run(self, is_stream: bool) -> None:
        while not self._stop.is_set():
            try:
                words = self._ask(is_stream=is_stream).split()
            except CliError as exc:
                self._note_error(str(exc))
                self._stop.wait(0.1)
            else:
                self._note(words)

    def _ask(self, *, is_stream: bool) -> str:
        body = {"model": self._model, "prompt": _PROMPT, "max_tokens": _NUM_TOKENS}
        body["temperature"] = 0
        if is_stream:
            with contextlib.closing(pieces(self._client, _PATH, body)) as found:
                return "".join(found)
        return str(self._client.post(_PATH, body)["choices"][0]["text"])

    def _note(self, words: list[str]) -> None:
        with self._lock:
            self.tally.num_requests += 1
            if self.is_exact and words != self._expected:
                expected, got = Counter(self._expected), Counter(words)
                self.tally.num_lost += (expected - got).total()
                self.tally.num_doubled += (got - expected).total()
                self._fail(f"not what was to come: {' '.join(words)[:200]}")

    def _note_error(self, message: str) -> None:
        with self._lock:
            self.tally.num_requests += 1
            self._fail(message)

    def _fail(self, message: str) -> None:
        self.tally.num_failed += 1
        if len(self.tally.errors) < _MAX_ERRORS:
            self.tally.errors.append(message)


def _ready_model(client: Client) -> str:
    found = views(client.get("/admin/models"), ModelView)
    ready = [m.id for m in found if m.state == "ready" and m.engine != "embed"]
    if not ready:
        raise CliError("no model is ready that the load could be for")
    return ready[0]


def _counts(words: list[str]) -> bool:
    """Whether a model has gone on counting from the prompt."""
    first = int(_PROMPT) + 1
    return len(words) > 1 and words == [str(first + i) for i in range(len(words))]
