"""Replicas are killed in mid-sentence, and the sentence goes on."""

import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from shared import names
from tests.admin_client import Completion, load, read_together, unload
from tests.conftest import Service, running_service, wait_for
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
    assert len(gaps) == 8
    assert unload(own_service, "pair")[0] == 200


def test_a_replica_that_wakes_up_again_adds_nothing(own_service: Service) -> None:
    """It stood still for so long that it was taken for dead; its heir has written on."""
    assert load(own_service, "pair", replicas=2, slots=8, context_length=16384)[0] == 200
    streams = [Completion(own_service, "pair", 12_000, start).read(3) for start in range(4)]
    victim = own_service.pids("worker.replica", "pair@")[0]
    os.kill(victim, signal.SIGSTOP)
    threading.Timer(7, os.kill, (victim, signal.SIGCONT)).start()
    assert read_together(streams) == [expected_text(n, 12_000) for n in range(4)]
    assert unload(own_service, "pair")[0] == 200


def test_grammars_and_stop_strings_hold_across_the_seam(own_service: Service) -> None:
    expression = r"( \d{1,3}){900}"
    bound = Completion(own_service, "counter", 1900, guided_regex=expression).read(5)
    stopped = Completion(own_service, "counter", 1900, stop=" 905 906").read(5)
    _kill(own_service, "counter@")
    assert bound.read().text == expected_text(5, 900)
    assert stopped.read().text == expected_text(5, 899)


def test_a_request_that_kills_replicas_is_not_run_a_third_time(tmp_path: Path) -> None:
    """A long prompt, so that the replica can be killed while it is read."""
    prompt = " ".join(["word"] * 3500)
    body = {"model": "gemma-3-270m", "prompt": prompt, "max_tokens": 5}
    with running_service(tmp_path, demo=True) as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), {"x-request-id": "poison"})
        log, known = names.log_key("poison"), 0
        for _ in range(2):
            wait_for(lambda known=known: service.redis.llen(log) > known, "it is in the engine", 20)
            _kill(service, "gemma")
            known = service.redis.llen(log)
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
        assert (response.status, error["code"]) == (400, "request_quarantined")
