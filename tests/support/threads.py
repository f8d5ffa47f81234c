"""A completion that is read in a thread of its own, while the test does something else."""

import threading

from tests.conftest import Service
from tests.support.admin_client import Completion
from tests.support.counter_model import expected_text


class Client(threading.Thread):
    """One streamed completion of a counter model."""

    def __init__(self, service: Service, model: str, num_tokens: int, start: int = 5) -> None:
        super().__init__(daemon=True)
        self._arguments = (service, model, num_tokens, start)
        self.completion: Completion | None = None
        self.start()

    def run(self) -> None:
        self.completion = Completion(*self._arguments)
        self.completion.read()

    @property
    def has_text(self) -> bool:
        return self.completion is not None and self.completion.text != ""

    def check(self) -> None:
        """Its text is whole, and nothing in it twice."""
        _, model, num_tokens, start = self._arguments
        self.join(120)
        assert not self.is_alive(), "the request hangs"
        assert self.completion is not None, "the connection broke"
        assert self.completion.error is None
        assert self.completion.text == expected_text(start, num_tokens), model
