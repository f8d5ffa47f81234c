"""The cost of server-sent events."""

import time
from collections.abc import Callable

import msgspec

from app.streaming import sse


def test_ascii_is_not_searched_for_line_ends_that_it_cannot_have() -> None:
    payload = {"text": "a plain answer " * 100_000}

    def cpu_s(call: Callable[[object], bytes]) -> float:
        started = time.thread_time()
        call(payload)
        return time.thread_time() - started

    encode_s = min(cpu_s(msgspec.json.encode) for _ in range(5))
    assert min(cpu_s(sse.event) for _ in range(5)) <= 5 * encode_s
