"""Replicas are killed in mid-sentence, and the sentence goes on."""

import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from shared import names
from shared.queue import lease
from tests.conftest import Service, wait_for
from tests.support.admin_client import Completion, load, load_again, read_together, unload
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed, slowed_model, stopped


def _kill(service: Service, *words: str) -> None:
    for pid in service.pids("worker.replica", *words):
        os.kill(pid, signal.SIGKILL)


def _attempt(service: Service, stream: Completion) -> int:
    """How often the job was begun before."""
    claim = lease.read(service.redis, stream.request_id)
    assert claim is not None
    return claim.attempt


def _holder(service: Service, stream: Completion) -> int:
    """Process id of the replica that has the job."""
    claim = lease.read(service.redis, stream.request_id)
    assert claim is not None
    (pid,) = service.pids("worker.replica", claim.holder)
    return pid


def _living_holder(service: Service, stream: Completion) -> int | None:
    claim = lease.read(service.redis, stream.request_id)
    pids = service.pids("worker.replica", claim.holder) if claim and claim.holder else []
    return pids[0] if pids else None


def test_a_stream_goes_on_when_its_only_replica_is_killed_twice(own_service: Service) -> None:
    assert load(own_service, "only", context_length=4096)[0] == 200
    with slowed_model(own_service, "only"):
        stream = Completion(own_service, "only", 3000)
        for num_read in (1, 40):
            stream.read(num_read)
            # What has been read may still be of the one that was killed.
            pid = wait_for(lambda: _living_holder(own_service, stream), "a replica has it")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: pid not in own_service.pids("worker.replica"), "it is dead")
    assert stream.read().text == expected_text(5, 3000)
    assert stream.error is None
    assert _attempt(own_service, stream) >= 2


def test_another_replica_takes_over_within_seconds(own_service: Service) -> None:
    assert load(own_service, "pair", replicas=2, slots=8, context_length=2048)[0] == 200
    pids = own_service.pids("worker.replica", "pair@")
    with slowed(*pids):
        streams = [Completion(own_service, "pair", 800, start).read(1) for start in range(8)]
    gaps: list[float] = []

    def read(stream: Completion) -> None:
        longest, before = 0.0, time.monotonic()
        while not stream.is_done and stream.error is None:
            stream.read(1)
            now = time.monotonic()
            longest, before = max(longest, now - before), now
        gaps.append(longest)

    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    with stopped(*pids):
        for thread in threads:
            thread.start()
        os.kill(_holder(own_service, streams[-1]), signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert [s.text for s in streams] == [expected_text(n, 800) for n in range(8)]
    assert len(gaps) == 8
    assert _attempt(own_service, streams[-1]) >= 1
    assert unload(own_service, "pair")[0] == 200


def test_a_replica_that_wakes_up_again_adds_nothing(own_service: Service) -> None:
    """It stood still for so long that it was taken for dead; its heir has written on."""
    assert load(own_service, "pair", replicas=2, slots=8, context_length=2048)[0] == 200
    client = own_service.redis
    pids = own_service.pids("worker.replica", "pair@")
    with slowed(*pids):
        streams = [Completion(own_service, "pair", 1200, start).read(1) for start in range(4)]
    ids = [stream.request_id for stream in streams]

    def has_heir(request_id: str) -> bool:
        claim = lease.read(client, request_id)
        is_taken_over = claim is not None and claim.holder != "" and claim.attempt > 0
        return is_taken_over and client.llen(names.log_key(request_id)) > written[request_id]

    with ThreadPoolExecutor(1) as pool:
        with stopped(*pids):
            victim = _holder(own_service, streams[0])
            written = {one: client.llen(names.log_key(one)) for one in ids}
            (other,) = set(pids) - {victim}
            os.kill(other, signal.SIGCONT)
            texts = pool.submit(read_together, streams)
            wait_for(lambda: any(has_heir(one) for one in ids), "an heir has written on", 60)
        assert texts.result() == [expected_text(n, 1200) for n in range(4)]
    assert unload(own_service, "pair")[0] == 200


def test_grammars_and_stop_strings_hold_across_the_seam(own_service: Service) -> None:
    expression = r"( \d{1,3}){900}"
    (pid,) = own_service.pids("worker.replica", "counter@")
    with slowed(pid):
        bound = Completion(own_service, "counter", 1900, guided_regex=expression).read(1)
        ended = Completion(own_service, "counter", 1900, stop=" 905 906").read(1)
    os.kill(pid, signal.SIGKILL)
    assert bound.read().text == expected_text(5, 900)
    assert ended.read().text == expected_text(5, 899)
    assert all(_attempt(own_service, stream) >= 1 for stream in (bound, ended))


def test_a_request_that_kills_replicas_is_not_run_a_third_time(service: Service) -> None:
    """A long prompt, so that the replica can be killed while it is read."""
    prompt = " ".join(["word"] * 3500)
    body = {"model": "gemma-3-270m", "prompt": prompt, "max_tokens": 5}
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"x-request-id": "poison"})
    log, known = names.log_key("poison"), 0
    for _ in range(2):
        wait_for(lambda known=known: service.redis.llen(log) > known, "it is in the engine")
        _kill(service, "gemma")
        known = service.redis.llen(log)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    assert (response.status, error["code"]) == (400, "request_quarantined")
    # Its failures are forgotten with it.
    assert unload(service, "gemma-3-270m", mode="now")[0] == 200
    assert load_again(service, "gemma-3-270m")[0] == 200
