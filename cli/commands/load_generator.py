"""Load for a test: sends requests without a pause and counts the results. A thread per client."""

import contextlib
import threading
from collections import Counter
from dataclasses import dataclass, field

from cli.answer_text import pieces
from cli.client import ServiceClient, choose_model
from cli.errors import CliError

_PATH = "/v1/completions"
_NUM_TOKENS = 200
_PROMPT = "5"
_MAX_ERRORS = 5


@dataclass(slots=True)
class Tally:
    """Results of the requests so far."""

    num_requests: int = 0
    num_failed: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    """Tokens lost and doubled, of a model that counts."""
    errors: list[str] = field(default_factory=list)
    """The first `_MAX_ERRORS` messages."""


class LoadGenerator:
    """Half of the clients read streams, half complete answers."""

    def __init__(self, client: ServiceClient, num_clients: int, model: str | None = None) -> None:
        """Send one request for the expected answer. Raises CliError, also without a model."""
        self._client = client
        self._model = choose_model(client, model, "completion")
        self._expected = self._ask(is_stream=False).split()
        first, num_words = int(_PROMPT) + 1, len(self._expected)
        counted = [str(first + i) for i in range(num_words)]
        self.is_exact = num_words > 1 and self._expected == counted
        """The model counts on from the prompt: its right answer is known, and compared."""
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
        """Wait until the open requests have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.tally

    def _run(self, is_stream: bool) -> None:
        while not self._stop.is_set():
            try:
                words = self._ask(is_stream=is_stream).split()
            except CliError as exc:
                with self._lock:
                    self.tally.num_requests += 1
                    self._fail(str(exc))
                self._stop.wait(0.1)
            else:
                self._count_answer(words)

    def _ask(self, *, is_stream: bool) -> str:
        body = {"model": self._model, "prompt": _PROMPT, "max_tokens": _NUM_TOKENS}
        body["temperature"] = 0
        if is_stream:
            with contextlib.closing(pieces(self._client, _PATH, body)) as found:
                return "".join(found)
        return str(self._client.post(_PATH, body)["choices"][0]["text"])

    def _count_answer(self, words: list[str]) -> None:
        with self._lock:
            self.tally.num_requests += 1
            if self.is_exact and words != self._expected:
                expected, got = Counter(self._expected), Counter(words)
                self.tally.num_lost += (expected - got).total()
                self.tally.num_doubled += (got - expected).total()
                self._fail(f"wrong answer: {' '.join(words)[:200]}")

    def _fail(self, message: str) -> None:
        self.tally.num_failed += 1
        if len(self.tally.errors) < _MAX_ERRORS:
            self.tally.errors.append(message)
