"""What a supervisor decides: when its job is well, loaded, queued again, or ended."""

from dataclasses import replace
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from app.jobs.status import JobStatus
from app.streaming.relay import Relay
from app.streaming.watchdog import TICK_S
from shared.errors import DeadlineExceeded, ModelFailed, QueueTimeout, ReplicaLost, RequestCancelled
from tests.support.relay_bench import (
    CANCELLED,
    DEADLINE_GRACE_S,
    EPOCH,
    GIVEN_BACK,
    LOADING,
    QUEUED,
    RUNNING,
    STARTED,
    RelayBench,
    begun,
)

# -- a job that is left alone ------------------------------------------------------------------


def _is_left_alone(bench: RelayBench, relay: Relay, found: JobStatus) -> bool:
    """Whether the reader is left alone."""
    relay.note(found)
    return bench.stream._queue.empty()


def test_a_job_that_a_live_replica_runs_is_left_alone(bench: RelayBench) -> None:
    bench.registry.alive, bench.registry.is_served_now = {"r"}, False
    relay = bench.relay()
    assert _is_left_alone(bench, relay, RUNNING)
    assert _is_left_alone(bench, relay, replace(RUNNING, is_cancelled=True)), "the replica ends it"
    assert bench.queue.lacked_since == []


def test_a_job_whose_replica_is_gone_is_not(bench: RelayBench) -> None:
    assert not _is_left_alone(bench, bench.relay(), RUNNING)


@pytest.mark.parametrize("status", [QUEUED, GIVEN_BACK])
def test_a_job_that_waits_in_its_queue_is_left_alone(bench: RelayBench, status: JobStatus) -> None:
    assert _is_left_alone(bench, bench.relay(), status)
    assert bench.queue.lacked_since == [bench.clock.now]


@pytest.mark.parametrize("status", [QUEUED, GIVEN_BACK])
def test_a_job_that_is_missing_in_its_queue_is_not(bench: RelayBench, status: JobStatus) -> None:
    bench.queue.is_lacking = True
    assert not _is_left_alone(bench, bench.relay(), status)


def test_a_cancelled_job_that_waits_is_seen_to(bench: RelayBench) -> None:
    assert not _is_left_alone(bench, bench.relay(), CANCELLED)


def test_a_job_that_nothing_serves_is_seen_to(bench: RelayBench) -> None:
    bench.registry.is_served_now = False
    assert not _is_left_alone(bench, bench.relay(), QUEUED)


# -- a replica, on demand ---------------------------------------------------------------------


def test_a_model_that_is_served_is_not_loaded(bench: RelayBench) -> None:
    relay = bench.relay()
    relay.first_events()
    assert bench.registry.ensured == []
    assert relay.load is None


def test_a_model_that_nothing_serves_is_loaded_before_the_first_wait(bench: RelayBench) -> None:
    bench.registry.is_served_now, bench.registry.load = False, LOADING
    relay = bench.relay()
    bench.stream.push(STARTED)
    relay.first_events()
    assert bench.registry.ensured == [("m", bench.job.deadline_at)]


def test_a_refused_load_is_the_error_of_the_request(bench: RelayBench) -> None:
    bench.registry.is_served_now, bench.registry.refusal = False, ModelFailed("no")
    with pytest.raises(ModelFailed):
        bench.relay().first_events()


def test_the_progress_of_a_load_does_not_wait_for_a_keepalive_interval(bench: RelayBench) -> None:
    bench.registry.is_served_now, bench.registry.load = False, LOADING
    relay = bench.relay()
    began_at = bench.clock.now
    assert relay.first_events() == []
    assert relay.load == LOADING
    assert bench.clock.now - began_at < bench.settings.keepalive_s


def test_a_load_that_is_refused_a_moment_later_is_still_the_status(bench: RelayBench) -> None:
    bench.registry.is_served_now, bench.registry.load = False, LOADING
    relay = bench.relay()

    def refuse() -> None:
        bench.registry.refusal = ModelFailed("no room")

    bench.stream.meanwhile = [refuse]
    with pytest.raises(ModelFailed):
        relay.first_events()


def test_the_progress_is_over_with_the_first_event(bench: RelayBench) -> None:
    bench.registry.is_served_now, bench.registry.load = False, LOADING
    relay, batches = begun(bench)
    assert relay.load == LOADING
    bench.stream.push(STARTED)
    next(batches)
    assert relay.load is None


@pytest.mark.parametrize("sign", ["load", "is_coming_now", "is_assigned_now"])
def test_a_replica_that_is_on_its_way_is_waited_for(bench: RelayBench, sign: str) -> None:
    relay, batches = begun(bench)
    bench.registry.is_served_now = False
    setattr(bench.registry, sign, LOADING)
    for _ in range(10):
        bench.tell(relay, QUEUED, after_s=10)
        assert next(batches) == []
    assert len(bench.registry.ensured) == 10


def test_no_replica_for_too_long_is_an_error(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.registry.is_served_now = False
    for after_s in (0.0, bench.settings.replica_wait_s):
        bench.tell(relay, QUEUED, after_s)
        assert next(batches) == []
    bench.tell(relay, QUEUED, 0.1)
    with pytest.raises(ReplicaLost, match="No replica of the model 'm'"):
        next(batches)


def test_the_wait_for_a_replica_starts_anew_when_one_was_there(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.queue.is_lacking = True
    for is_served in (False, True, False):
        bench.registry.is_served_now = is_served
        bench.tell(relay, QUEUED, after_s=10)
        assert next(batches) == []
        if not bench.stream._queue.empty():
            assert next(batches) == []  # the log of a job that was queued again


def test_the_wait_for_a_replica_starts_anew_after_an_event(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.registry.is_served_now = False
    bench.tell(relay, QUEUED)
    assert next(batches) == []
    bench.clock.now += 10
    bench.stream.push(STARTED)
    assert next(batches) == [STARTED]
    bench.tell(relay, QUEUED, after_s=10)
    assert next(batches) == []


# -- outages of Redis -------------------------------------------------------------------------


def test_a_short_outage_of_redis_is_bridged(bench: RelayBench) -> None:
    _, batches = begun(bench)
    bench.log.is_away = True
    bench.stream.push_repair()
    for _ in range(5):
        assert next(batches) == []
    bench.log.is_away, bench.log.events = False, [STARTED]
    assert next(batches) == [STARTED]


def test_between_two_tries_the_relay_sleeps(bench: RelayBench) -> None:
    _, batches = begun(bench)
    bench.log.is_away = True
    bench.stream.push_repair()
    began_at = bench.clock.now
    next(batches)
    assert bench.clock.now > began_at


def test_a_long_outage_of_redis_is_an_error(bench: RelayBench) -> None:
    _, batches = begun(bench)
    bench.log.is_away = True
    bench.stream.push_repair()
    began_at = bench.clock.now
    with pytest.raises(redis.ConnectionError):
        while bench.clock.now < began_at + 2 * bench.settings.replica_wait_s:
            next(batches)
    assert bench.clock.now > began_at + bench.settings.replica_wait_s


def test_an_outage_of_the_broker_at_the_load_is_bridged_and_the_load_tried_again(
    bench: RelayBench,
) -> None:
    bench.registry.is_served_now, bench.registry.refusal = False, OperationalError("cut")
    relay = bench.relay()
    batches = relay.events([])
    assert [next(batches), next(batches)] == [[], []]
    bench.registry.refusal, bench.registry.load = None, LOADING
    assert next(batches) == []
    assert relay.load == LOADING
    assert len(bench.registry.ensured) == 3
    next(batches)
    assert len(bench.registry.ensured) == 3, "it has begun"


def test_the_watchdogs_outage_is_the_readers(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    for after_s in (0.0, 10.0):
        bench.tell(relay, redis.ConnectionError("cut"), after_s)
        assert next(batches) == []
    bench.tell(relay, redis.ConnectionError("cut"), 10)
    with pytest.raises(redis.ConnectionError):
        next(batches)


def test_an_outage_is_over_when_the_watchdog_finds_the_job_well(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.registry.alive = {"r"}
    for found in (redis.ConnectionError("cut"), RUNNING, redis.ConnectionError("cut")):
        bench.tell(relay, found, after_s=10)
        assert next(batches) == []


# -- the end of waiting -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [QUEUED, RUNNING, CANCELLED])
def test_a_job_ends_a_grace_after_its_deadline_whatever_it_does(
    bench: RelayBench, status: JobStatus
) -> None:
    bench.registry.alive = {"r"}
    relay, batches = begun(bench)
    bench.clock.now = bench.job.deadline_at - EPOCH + DEADLINE_GRACE_S
    if status is not CANCELLED:
        assert _is_left_alone(bench, relay, status), "the replica may still be about to end it"
    bench.tell(relay, status, after_s=0.5)
    with pytest.raises(DeadlineExceeded):
        next(batches)


def test_a_job_that_no_replica_has_had_for_too_long_ends(bench: RelayBench) -> None:
    bench.set(max_queue_s=20.0)
    relay, batches = begun(bench)
    bench.clock.now = bench.job.created_at - EPOCH + 20 + DEADLINE_GRACE_S
    assert _is_left_alone(bench, relay, QUEUED)
    bench.tell(relay, QUEUED, after_s=0.5)
    with pytest.raises(QueueTimeout, match="20 s") as caught:
        next(batches)
    assert caught.value.retry_after_s == 60, "nothing is ready"


@pytest.mark.parametrize(("longest_s", "status"), [(0.0, QUEUED), (20.0, GIVEN_BACK)])
def test_without_a_limit_or_once_begun_a_job_may_wait(
    bench: RelayBench, longest_s: float, status: JobStatus
) -> None:
    bench.set(max_queue_s=longest_s)
    relay, batches = begun(bench)
    bench.clock.now += 500
    assert _is_left_alone(bench, relay, status)
    bench.registry.is_served_now, bench.registry.load = False, LOADING
    bench.tell(relay, status)
    assert next(batches) == [], "nor does it end while it is seen to"


def test_a_cancelled_job_ends(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.registry.is_served_now = False
    bench.tell(relay, CANCELLED)
    with pytest.raises(RequestCancelled):
        next(batches)
    assert bench.registry.ensured == [], "no model is loaded for it"


# -- queued again -----------------------------------------------------------------------------


def test_a_lost_job_is_queued_again_and_its_log_read(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.queue.is_lacking, bench.log.events = True, [STARTED]
    bench.tell(relay, QUEUED)
    assert next(batches) == []
    assert bench.border.requeued == ["j"]
    assert next(batches) == [STARTED], "it may have ended unheard"


def test_a_job_that_was_queued_just_now_is_not_lost_yet(bench: RelayBench) -> None:
    bench.queue.is_lacking = True
    relay = bench.relay()
    batches = relay.events([])
    bench.tell(relay, QUEUED, after_s=TICK_S)
    next(batches)
    assert bench.border.requeued == []
    bench.tell(relay, QUEUED, after_s=0.1)
    next(batches)
    assert bench.border.requeued == ["j"]


def test_the_job_of_a_dead_replica_is_queued_again_though_its_queue_is_unknown(
    bench: RelayBench,
) -> None:
    relay, batches = begun(bench)
    bench.tell(relay, RUNNING)
    next(batches)
    assert bench.border.requeued == ["j"]
    assert bench.queue.lacked_since == []


def test_a_second_time_it_must_be_missing_in_the_queue(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.tell(relay, RUNNING)
    next(batches)
    requeued_at = bench.clock.now
    assert next(batches) == []
    for is_lacking in (False, True):
        bench.queue.is_lacking = is_lacking
        bench.tell(relay, RUNNING, after_s=100)
        next(batches)
        assert len(bench.border.requeued) == 1 + is_lacking
    assert set(bench.queue.lacked_since) == {requeued_at}


def _lose(bench: RelayBench, relay: Relay, batches: Any, after_s: float) -> int:
    """Find the job lost so long after it was queued last; how often it was queued again."""
    bench.stream.push_repair()
    next(batches)  # the repair of the last time
    bench.clock.now = relay._supervisor._enqueued_at
    bench.tell(relay, QUEUED, after_s)
    next(batches)
    return len(bench.border.requeued)


def test_each_time_is_waited_for_twice_as_long_and_six_are_enough(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.queue.is_lacking = True
    for num_before in range(6):
        wait_s = TICK_S * 2**num_before
        assert _lose(bench, relay, batches, wait_s) == num_before, "not yet"
        assert _lose(bench, relay, batches, wait_s + 0.1) == num_before + 1
    with pytest.raises(ReplicaLost, match="lost several times"):
        _lose(bench, relay, batches, 100)
    assert len(bench.border.requeued) == 6


def test_the_death_of_another_replica_ends_the_back_off(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.queue.is_lacking = True
    for _ in range(6):
        _lose(bench, relay, batches, 100)
    for num_before, holder in enumerate(("a", "b", "c"), 6):
        bench.stream.push_repair()
        next(batches)
        bench.clock.now = relay._supervisor._enqueued_at
        bench.tell(relay, replace(RUNNING, holder=holder), TICK_S + 0.1)
        next(batches)
        assert len(bench.border.requeued) == num_before + 1


def test_an_event_ends_the_back_off(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    bench.queue.is_lacking = True
    for _ in range(6):
        _lose(bench, relay, batches, 100)
    bench.stream.push(STARTED)
    assert next(batches) == [STARTED]
    assert _lose(bench, relay, batches, TICK_S + 0.1) == 7
