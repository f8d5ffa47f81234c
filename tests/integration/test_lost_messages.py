"""A replica has taken the message of a job that it has not begun, and ends."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from shared import names
from shared.limits import Limits
from shared.queue import lease
from shared.queue.job_queue import JobQueue
from shared.wire import codec
from shared.wire.events import Finished
from shared.wire.job import Priority, Sampling
from tests.conftest import Service, wait_for
from tests.support.admin_client import Completion, load
from tests.support.counter_model import expected_text
from tests.support.jobs import completion_job
from tests.support.sse_reader import Answer


@contextmanager
def _single_slot_taken(service: Service) -> Iterator[Answer]:
    """The model "single" has one slot. The answer that takes it ends when it is cancelled."""
    assert load(service, "single", slots=1, context_length=8192)[0] == 200
    # So many choices that it does not end by itself; they are made one after the other.
    body = {"model": "single", "prompt": "5", "max_tokens": 4000, "temperature": 0, "n": 100}
    endless = Answer(service, "completions", {**body, "stream": True}).read(1)
    reader = threading.Thread(target=endless.read)
    reader.start()
    yield endless
    reader.join()
    assert "request_cancelled" in endless.events[-1].data
    assert endless.text.startswith(expected_text(5, 100))


def _holder(service: Service, job_id: str) -> str:
    """Id of the replica that has the job."""
    found = lease.read(service.redis, job_id)
    return found.holder if found else ""


def _reserve(service: Service, place: int) -> None:
    """Have the replica take the message that waits in the list at `place`: one that has reconnected
    takes one, although its slot is not free."""
    client, lists = service.redis, names.priority_lists("single")
    wait_for(lambda: client.llen(lists[place]) == 1, "a message waits")
    client.lmove(lists[place], lists[0], "RIGHT", "LEFT")  # before that of the running job
    client.client_kill_filter(_type="pubsub")  # one of them is the replica's
    wait_for(lambda: client.llen(lists[0]) == 0, "the replica has it")


def _end(service: Service, number: int, endless: Answer) -> None:
    """Send a signal to the replica, and cancel its job when the next replica has it."""
    (pid,) = service.pids("worker.replica", "single@")
    victim = _holder(service, endless.request_id)
    os.kill(pid, number)
    wait_for(lambda: _holder(service, endless.request_id) not in ("", victim), "the next one runs")
    assert Answer(service, f"requests/{endless.request_id}/cancel", {}).status == 200


def test_a_request_is_answered_whose_replica_is_killed_before_it_begins(
    own_service: Service,
) -> None:
    with ThreadPoolExecutor(1) as pool, _single_slot_taken(own_service) as endless:
        waiting = pool.submit(lambda: Completion(own_service, "single", 100, 7).read())
        _reserve(own_service, 1)
        _end(own_service, signal.SIGKILL, endless)
        assert waiting.result().text == expected_text(7, 100)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_without_a_reader_runs_whose_replica_ends_before_it_begins(
    own_service: Service, number: int
) -> None:
    """No web process looks for its message. A replica that stops puts it back; when it is killed,
    an agent finds the job without one."""
    job = completion_job(
        id=f"unread-{int(number)}",
        model="single",
        prompts=["7"],
        max_tokens=100,
        sampling=Sampling(temperature=0.0),
        priority=Priority.BATCH,
        owner="anonymous",
    )
    with _single_slot_taken(own_service) as endless:
        admission = JobQueue(own_service.redis, 600).admit(job, "nobody", Limits(), 1000)
        assert admission.reject_reason is None
        _reserve(own_service, 3)
        _end(own_service, number, endless)
        last = wait_for(lambda: _last_finished(own_service, job.id), "it has run")
    assert last.usage.completion_tokens == 100


def _last_finished(service: Service, job_id: str) -> Finished | None:
    payload = service.redis.lindex(names.log_key(job_id), -1)
    event = codec.decode_event(payload) if payload else None
    return event if isinstance(event, Finished) else None
