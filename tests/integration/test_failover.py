"""Replicas are killed in mid-sentence, and the sentence goes on."""

import os
import signal
import threading
import time

import pytest

from tests.admin_client import Completion, load, unload
from tests.conftest import Service
from tests.counter_model import expected_text


def _kill(service: Service, *words: str) -> None:
    for pid in service.pids("worker.replica", *words):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("num_read", [1, 40])
def test_a_stream_goes_on_when_its_only_replica_is_killed(
    own_service: Service, num_read: int
) -> None:
    stream = Completion(own_service, "counter", 1500).read(num_read)
    _kill(own_service, "counter@")
    assert stream.read().text == expected_text(5, 1500)
    assert stream.error is None


def test_another_replica_takes_over_within_seconds(own_service: Service) -> None:
    assert load(own_service, "pair", replicas=2, slots=8, context_length=8192)[0] == 200
    streams = [Completion(own_service, "pair", 6000, start).read(3) for start in range(8)]
    victim = own_service.pids("worker.replica", "pair@")[0]
    gaps: list[float] = []

    def read(stream: Completion) -> None:
        longest, before = 0.0, time.monotonic()
        while not stream.is_done and stream.error is None:
            stream.read(1)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        gaps.append(longest)

    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert [s.text for s in streams] == [expected_text(n, 6000) for n in range(8)]
    print("gaps", sorted(round(gap, 2) for gap in gaps))
    assert unload(own_service, "pair")[0] == 200
