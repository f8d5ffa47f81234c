"""The queue of jobs against a real Redis: fair places, limits, positions, and Celery's own view."""

import base64
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from celery import Celery

from shared import names
from shared.limits import Limits, charge_of
from shared.queue.job_queue import Admission, JobQueue, LeaveResult, RejectReason
from shared.queue.snapshot import QueuePosition
from shared.redis.celery_transport import register
from shared.wire import codec
from shared.wire.job import ChatMessage, Job, JobKind, Priority
from tests.conftest import wait_for
from tests.support.jobs import completion_job

FREE = Limits()


@pytest.fixture
def queue(server: redis.Redis) -> JobQueue:
    return JobQueue(server, 60)


def _job(job_id: str, owner: str = "a", **fields: Any) -> Job:
    return completion_job(id=job_id, owner=owner, **fields)


def _admit(
    queue: JobQueue, job: Job, limits: Limits = FREE, max_queue_length: int = 100_000
) -> Admission:
    return queue.admit(job, "c", limits, max_queue_length)


def _burst(queue: JobQueue, owner: str, number: int, **fields: Any) -> list[QueuePosition]:
    orders = [
        _admit(queue, _job(f"{owner}{i}", owner, **fields)).position for i in range(1, number + 1)
    ]
    assert None not in orders
    return orders  # type: ignore[return-value]


def _pop(server: redis.Redis) -> str:
    """What the next free slot gets, as kombu asks for it; "" when nothing waits."""
    popped: Any = server.brpop(names.priority_lists("m"), timeout=0.01)  # type: ignore[arg-type]
    return str(json.loads(popped[1])["headers"]["id"]) if popped else ""


def _pop_all(server: redis.Redis) -> list[str]:
    return list(iter(lambda: _pop(server), ""))


# -- turns -----------------------------------------------------------------------------------


def test_one_request_overtakes_the_hundred_of_another_key(
    server: redis.Redis, queue: JobQueue
) -> None:
    _burst(queue, "a", 100)
    admission = _admit(queue, _job("b1", "b"))
    assert admission.ahead == 1
    assert _pop_all(server)[:3] == ["a1", "b1", "a2"]


def test_keys_with_bursts_take_turns(server: redis.Redis, queue: JobQueue) -> None:
    for owner in "abc":
        _burst(queue, owner, 3)
    assert _pop_all(server) == ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]


def test_a_burst_that_is_half_served_is_still_overtaken(
    server: redis.Redis, queue: JobQueue
) -> None:
    _burst(queue, "a", 100)
    for _ in range(50):
        _pop(server)
    _burst(queue, "b", 2)
    assert _pop_all(server)[:5] == ["a51", "b1", "a52", "b2", "a53"]


def test_requests_of_one_key_keep_their_order(server: redis.Redis, queue: JobQueue) -> None:
    _burst(queue, "a", 20)
    assert _pop_all(server) == [f"a{i}" for i in range(1, 21)]


def test_who_has_left_the_queue_is_not_behind_for_it(server: redis.Redis, queue: JobQueue) -> None:
    _admit(queue, _job("z1", "z"))
    for i, order in enumerate(_burst(queue, "a", 50), 1):
        assert queue.leave(_job(f"a{i}"), "c", order) is LeaveResult.OUT_OF_QUEUE
    _burst(queue, "b", 5)
    _admit(queue, _job("a-again"))
    assert _pop_all(server)[:4] == ["z1", "b1", "a-again", "b2"]


def test_an_empty_queue_forgets_who_waited_in_it(server: redis.Redis, queue: JobQueue) -> None:
    for i in range(30):
        _admit(queue, _job(f"{i}", f"owner-{i}"))
    assert server.hlen(names.tags_key("m", 2)) == 30
    _pop_all(server)
    _admit(queue, _job("last", "z"))
    assert server.hlen(names.tags_key("m", 2)) == 1


def test_classes_go_in_their_order(server: redis.Redis, queue: JobQueue) -> None:
    for priority in (Priority.BATCH, Priority.BACKGROUND, Priority.INTERACTIVE):
        _admit(queue, _job(priority.value, priority=priority))
    lost = _job("lost", priority=Priority.BATCH)
    _admit(queue, lost)
    _pop(server)
    queue.requeue(lost)
    assert _pop_all(server)[:3] == ["lost", "background", "batch"]


def test_no_class_starves(server: redis.Redis, queue: JobQueue) -> None:
    """One of each lower class goes ahead in every interval, however many replicas ask for it."""
    _burst(queue, "i", 20)
    _burst(queue, "g", 3, priority=Priority.BACKGROUND)
    _burst(queue, "t", 3, priority=Priority.BATCH)
    assert queue.take_turns("m", 60) == 0, "they have not waited for an interval yet"
    for field in ("due:3", "due:4"):
        server.hset(names.turns_key("m"), field, time.time() - 1)
    assert [queue.take_turns("m", 60) for _ in range(3)] == [2, 0, 0]
    assert _pop_all(server)[:4] == ["g1", "t1", "i1", "i2"]


# -- positions -------------------------------------------------------------------------------


def test_places_are_right_whatever_comes_and_goes(server: redis.Redis, queue: JobQueue) -> None:
    """Two hundred random requests of five keys; some leave, some are popped, some come again."""
    rng = random.Random(7)
    orders: dict[str, QueuePosition] = {}
    jobs: dict[str, Job] = {}
    for i in range(200):
        priority = rng.choice([Priority.INTERACTIVE, Priority.BACKGROUND])
        job = _job(f"j{i}", rng.choice("abcde"), priority=priority)
        order = _admit(queue, job).position
        assert order is not None
        orders[job.id], jobs[job.id] = order, job
        dice = rng.random()
        if dice < 0.2:
            left = rng.choice(list(orders))
            queue.leave(jobs[left], "c", orders.pop(left))
        elif dice < 0.4:
            orders.pop(_pop(server), None)
    waiting = [
        json.loads(message)["headers"]
        for key in names.priority_lists("m")
        for message in reversed(server.lrange(key, 0, -1))  # type: ignore[arg-type]
    ]
    assert [headers["id"] for headers in waiting] == sorted(orders, key=orders.__getitem__)
    outline = queue.snapshot("m")
    found = [outline.position(orders[headers["id"]]) for headers in waiting]
    assert found == list(range(len(waiting)))


def test_who_does_not_wait_has_no_position(server: redis.Redis, queue: JobQueue) -> None:
    first, second = _burst(queue, "a", 2)
    _pop(server)
    outline = queue.snapshot("m")
    assert [outline.position(order) for order in (first, second)] == [None, 0]
    _pop(server)
    assert queue.snapshot("m").position(second) is None


def test_positions_far_behind_are_about_right(server: redis.Redis, queue: JobQueue) -> None:
    orders = _burst(queue, "a", 1000)
    outline = queue.snapshot("m")
    found = [outline.position(order) for order in orders]
    assert found[:64] == list(range(64))
    assert all(abs((place or 0) - i) <= 15 for i, place in enumerate(found))
    assert found == sorted(found, key=lambda place: place or 0)


def test_the_age_of_the_oldest(server: redis.Redis, queue: JobQueue) -> None:
    """Whatever its key, its class, and how often it has been given back."""
    assert queue.snapshot("m").oldest_at is None
    made_at = 1_700_000_000.0
    for i, (owner, priority) in enumerate(
        [("a", Priority.INTERACTIVE), ("a", Priority.INTERACTIVE), ("b", Priority.BATCH)]
    ):
        job = _job(f"j{i}", owner, priority=priority)
        _admit(queue, msgspec.structs.replace(job, created_at=made_at + 5 * i))
    assert queue.snapshot("m").oldest_at == made_at
    _pop(server)
    assert queue.snapshot("m").oldest_at == made_at + 5
    queue.requeue(msgspec.structs.replace(_job("j0"), created_at=made_at))
    assert queue.snapshot("m").oldest_at == made_at
    _pop_all(server)
    assert queue.snapshot("m").oldest_at is None


# -- limits ----------------------------------------------------------------------------------


def test_requests_a_minute(server: redis.Redis, queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=3)
    left = []
    for i in range(3):
        allowance = _admit(queue, _job(f"{i}"), limits).allowances.requests
        assert allowance is not None and allowance.limit == 3
        left.append((allowance.remaining, round(allowance.reset_s / 20)))
    assert left == [(2, 1), (1, 2), (0, 3)]
    refused = _admit(queue, _job("more"), limits)
    assert refused.reject_reason is RejectReason.REQUESTS
    assert 0 < refused.retry_s <= 20
    assert _admit(queue, _job("other", "b"), limits).reject_reason is None


def test_what_is_refused_leaves_no_trace(server: redis.Redis, queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=5, tokens_per_minute=100, max_open_requests=1)
    _admit(queue, _job("0", charged_tokens=10), limits)
    before = _dump(server)
    refused = _admit(queue, _job("1", charged_tokens=10), limits)
    assert refused.reject_reason is RejectReason.OPEN and refused.ahead == 1
    assert refused.allowances.requests is not None and refused.allowances.tokens is not None
    assert (refused.allowances.requests.remaining, refused.allowances.tokens.remaining) == (4, 90)
    assert _dump(server) == before


def _dump(server: redis.Redis) -> dict[bytes, bytes]:
    keys: Any = server.keys()
    return {key: server.dump(key) for key in keys}  # type: ignore[misc]


def test_tokens_are_charged_and_set_right(server: redis.Redis, queue: JobQueue) -> None:
    limits = Limits(tokens_per_minute=1000)
    job = _job("0", charged_tokens=900)
    _admit(queue, job, limits)
    refused = _admit(queue, _job("1", charged_tokens=500), limits)
    assert refused.reject_reason is RejectReason.TOKENS and 20 < refused.retry_s <= 24
    queue.begin(job)
    for _ in range(2):
        queue.settle(job, 100)  # as after an answer that was lost
    admission = _admit(queue, _job("2", charged_tokens=500), limits)
    assert admission.allowances.tokens is not None
    assert 400 <= admission.allowances.tokens.remaining <= 401
    queue.settle(_job("2", charged_tokens=500), 1200)
    assert _admit(queue, _job("3"), limits).reject_reason is None, "it asks for none"
    refused = _admit(queue, _job("4", charged_tokens=1), limits)
    assert refused.reject_reason is RejectReason.TOKENS, "what was used beyond the charge is a debt"


def test_buckets_fill_up_again(server: redis.Redis, queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=60)
    for i in range(60):
        _admit(queue, _job(f"{i}"), limits)
    rates = names.rates_key("a")
    at: Any = server.hget(rates, "at")
    server.hset(rates, "at", float(at) - 30)
    allowance = _admit(queue, _job("later"), limits).allowances.requests
    assert allowance is not None and 29 <= allowance.remaining <= 30


def test_open_and_waiting_requests_of_a_key(server: redis.Redis, queue: JobQueue) -> None:
    limits = Limits(max_open_requests=3, max_waiting_requests=2)
    jobs = [_job(f"{i}") for i in range(5)]
    assert _admit(queue, jobs[0], limits).reject_reason is None
    assert _admit(queue, jobs[1], limits).reject_reason is None
    assert _admit(queue, jobs[2], limits).reject_reason is RejectReason.WAITING
    queue.begin(jobs[0])
    assert _admit(queue, jobs[2], limits).reject_reason is None
    assert _admit(queue, jobs[3], limits).reject_reason is RejectReason.OPEN
    queue.settle(jobs[0], 0)
    queue.begin(jobs[1])
    assert _admit(queue, jobs[3], limits).reject_reason is None
    assert _admit(queue, _job("other", "b"), limits).reject_reason is None


def test_a_lost_request_counts_until_its_deadline(server: redis.Redis, queue: JobQueue) -> None:
    limits = Limits(max_open_requests=1)
    _admit(queue, _job("lost"), limits)
    assert _admit(queue, _job("1"), limits).reject_reason is RejectReason.OPEN
    server.zadd(names.waiting_key("a"), {"lost": time.time() - 1})
    assert _admit(queue, _job("1"), limits).reject_reason is None


def test_the_queue_of_a_model_is_bounded(server: redis.Redis, queue: JobQueue) -> None:
    _burst(queue, "a", 3)
    refused = _admit(queue, _job("b1", "b"), max_queue_length=3)
    assert refused.reject_reason is RejectReason.QUEUE and refused.ahead == 3
    assert _admit(queue, _job("b1", "b", model="other"), max_queue_length=3).reject_reason is None


def test_an_id_is_taken_once(server: redis.Redis, queue: JobQueue) -> None:
    _admit(queue, _job("a"))
    assert _admit(queue, _job("a", "b")).reject_reason is RejectReason.TAKEN


def test_a_charge_is_an_estimate_of_prompt_and_completion() -> None:
    limits = Limits(tokens_per_minute=10_000)
    chat = _job("a", kind=JobKind.CHAT, prompts=[], messages=[ChatMessage("user", "four" * 5)])
    assert charge_of(chat, limits) == 5 + 256
    several = _job("a", prompts=["four", [1, 2, 3]], num_choices=2, max_tokens=10)
    assert charge_of(several, limits) == 1 + 3 + 40
    assert charge_of(_job("a", prompts=["€"], max_tokens=0), limits) == 1
    assert charge_of(_job("a", kind=JobKind.EMBEDDING, prompts=["12345"]), limits) == 2
    assert charge_of(_job("a", kind=JobKind.TOKENIZE), limits) == 0
    assert charge_of(_job("a", max_tokens=10**9), limits) == 10_000
    assert charge_of(several, FREE) == 0


# -- Celery's view ---------------------------------------------------------------------------


@pytest.fixture
def celery(redis_socket: str) -> Iterator[Celery]:
    register()
    app = Celery("test")
    app.config_from_object("celeryconfig")
    app.conf.broker_url = f"redis+socket://{redis_socket}"
    yield app
    app.close()


def test_the_message_is_the_one_that_celery_would_send(
    server: redis.Redis, queue: JobQueue, celery: Celery
) -> None:
    key = names.priority_lists("m")[1]
    celery.send_task(
        names.GENERATE_TASK,
        ("a1",),
        task_id="a1",
        queue=names.model_queue("m"),
        priority=3,
        ignore_result=True,
    )
    theirs: Any = json.loads(server.rpop(key))  # type: ignore[arg-type]
    job = _job("a1")
    _admit(queue, job)
    ours: Any = json.loads(server.rpop(key))  # type: ignore[arg-type]
    assert ours["headers"].pop("llmis_order") == "1.1"
    assert ours["headers"].pop("llmis_made_ms") == int(1000 * job.created_at)
    assert ours["properties"].pop("reply_to") == "", "no result goes anywhere"
    assert theirs["properties"].pop("reply_to")
    for message in (ours, theirs):
        assert len(message["properties"].pop("delivery_tag")) == 36
        message["body"] = json.loads(base64.b64decode(message["body"]))
    assert ours["headers"] == theirs["headers"]
    assert ours == theirs


def test_what_kombu_gives_back_keeps_its_place(
    server: redis.Redis, queue: JobQueue, celery: Celery
) -> None:
    """A worker that loses its connection, or stops, gives back what it has not acknowledged."""
    orders = _burst(queue, "a", 4)
    with celery.connection() as connection:
        simple = connection.SimpleQueue(names.model_queue("m"))
        message = simple.get(timeout=60)
        assert message.headers["id"] == "a1"
        simple.close()
        message.channel.close()
    key = names.priority_lists("m")[1]
    wait_for(lambda: server.llen(key) == 4, "the message is back")
    outline = queue.snapshot("m")
    assert [outline.position(order) for order in orders] == [0, 1, 2, 3]
    _admit(queue, _job("b1", "b"))
    assert _pop_all(server) == ["a1", "b1", "a2", "a3", "a4"]


# -- readers ---------------------------------------------------------------------------------


def test_who_had_begun_comes_back_before_all_others(server: redis.Redis, queue: JobQueue) -> None:
    orders = _burst(queue, "a", 3)
    server.set(names.lease_key("a3"), b"claim")
    assert queue.leave(_job("a3"), "c", orders[2]) is LeaveResult.OUT_OF_QUEUE
    assert queue.join(_job("a3"), "d")
    assert _pop_all(server) == ["a3", "a1", "a2"]
    assert server.get(names.cancel_key("a3")) is None


def test_who_had_not_begun_comes_back_behind_those_who_wait(
    server: redis.Redis, queue: JobQueue
) -> None:
    orders = _burst(queue, "a", 3)
    assert queue.leave(_job("a1"), "c", orders[0]) is LeaveResult.OUT_OF_QUEUE
    assert queue.join(_job("a1"), "d")
    assert _pop_all(server) == ["a2", "a3", "a1"]
    assert server.get(names.cancel_key("a1")) is None


def test_a_job_that_others_read_stays(server: redis.Redis, queue: JobQueue) -> None:
    (order,) = _burst(queue, "a", 1)
    assert queue.join(_job("a1"), "d")
    assert queue.leave(_job("a1"), "c", order) is LeaveResult.READ_BY_OTHERS
    assert queue.leave(_job("a1"), "d", None) is LeaveResult.TO_BE_STOPPED
    assert codec.decode_job(server.get(names.job_key("a1"))).id == "a1"  # type: ignore[arg-type]


def test_a_job_that_is_gone_cannot_be_joined(server: redis.Redis, queue: JobQueue) -> None:
    assert not queue.join(_job("gone"), "d")
    assert not server.keys()


def test_a_new_request_inherits_nothing_of_an_earlier_one_of_its_id(
    server: redis.Redis, queue: JobQueue
) -> None:
    server.rpush(names.log_key("again"), b"event")
    server.set(names.cancel_key("again"), names.LEFT)
    assert _admit(queue, _job("again")).reject_reason is None
    assert not server.exists(names.log_key("again"), names.cancel_key("again"))
    server.set(names.lease_key("running"), b"claim")
    assert _admit(queue, _job("running")).reject_reason is RejectReason.TAKEN


def test_leaving_and_joining_again_sends_no_second_message(
    server: redis.Redis, queue: JobQueue
) -> None:
    job = _job("restless")
    _admit(queue, job)
    for _ in range(3):
        assert queue.leave(job, "c", None) is LeaveResult.TO_BE_STOPPED
        assert queue.join(job, "c")
    assert sum(server.llen(key) for key in names.priority_lists(job.model)) == 1
    assert not server.exists(names.cancel_key(job.id))
