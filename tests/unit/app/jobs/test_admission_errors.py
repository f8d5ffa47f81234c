"""When a refused client is to come again, and in which words it hears of its limits."""

import math

import msgspec
import pytest

from app.jobs.admission_errors import MAX_RETRY_S, expected_wait_s, rejection_error, retry_after_s
from app.jobs.rate_limit_headers import duration, headers_of
from shared.errors import QueueFull, ReplicaLost
from shared.limits import Allowance, Allowances, Limits
from shared.queue.job_queue import Admission, RejectReason
from shared.wire.records import ReplicaRecord, ReplicaState
from tests.support.registry_records import make_replica

_RECORD = make_replica(slots=4, busy_slots=4, slot_s=8.0)


def _record(**fields: object) -> ReplicaRecord:
    return msgspec.structs.replace(_RECORD, **fields)


def test_the_wait_is_depth_times_slot_time_over_slots() -> None:
    assert expected_wait_s([_record()], 9) == 20
    assert expected_wait_s([_record(), _record(slots=12)], 9) == 5
    assert expected_wait_s([_record(), _record(state=ReplicaState.LOADING)], 9) == 20
    assert expected_wait_s([_record(slot_s=0.0)], 7) == 2
    assert expected_wait_s([], 0) == math.inf


@pytest.mark.parametrize(("wait_s", "header"), [(0, 1), (1.2, 2), (59.5, 60), (math.inf, 60)])
def test_retry_after_is_a_whole_number_of_seconds_that_clients_heed(
    wait_s: float, header: int
) -> None:
    assert retry_after_s(wait_s) == header <= MAX_RETRY_S


def test_a_full_queue_says_when_there_is_room_or_that_nobody_serves_it() -> None:
    full = Admission(reject_reason=RejectReason.QUEUE, ahead=9)
    error = rejection_error(full, Limits(), "m", [_record()])
    assert isinstance(error, QueueFull) and error.retry_after_s == 20
    error = rejection_error(full, Limits(), "m", [_record(state=ReplicaState.DRAINING)])
    assert isinstance(error, ReplicaLost) and error.status == 503


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0ms"),
        (0.02, "20ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (0.9999, "1s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
    ],
)
def test_times_are_worded_as_openai_does(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_only_limits_that_a_key_has_are_told() -> None:
    allowance = Allowance(limit=60, remaining=59, reset_s=1)
    assert headers_of(Allowances()) == {}
    assert headers_of(Allowances(tokens=allowance)) == {
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "59",
        "x-ratelimit-reset-tokens": "1s",
    }
