"""The dispatcher against a real Redis: how a job is queued, joined, left and cancelled."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from app.events.event_id import EventId
from app.events.hub import Hub
from app.jobs.dispatcher import (
    Dispatcher,
    IdempotencyKey,
    Subscription,
    new_request_id,
    request_id_from,
)
from app.jobs.status import JobStatus
from app.metrics.definitions import RATE_LIMIT_HITS
from shared import names
from shared.errors import (
    EngineError,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    QueueFull,
    ReplicaLost,
    RequestCancelled,
    TooManyRequests,
    TooManyTokens,
)
from shared.limits import Limits
from shared.queue.lease import Lease
from shared.settings.fields import Settings
from shared.wire import codec
from shared.wire import job as messages
from shared.wire.events import Event, Failed, Finished, Started, Timings, Usage
from shared.wire.job import Job, JobKind, Priority
from shared.wire.records import ReplicaRecord, ReplicaState
from tests.support import gevent_redis
from tests.support.chat_jobs import chat_job
from tests.support.registry_records import make_replica

_FREE = Limits()
_STARTED = Started(0, 0, 3)
_FINISHED = Finished(1, 0, Usage(3, 1), Timings(0, 0, 0))
_KEY = names.idempotency_key("anonymous", "digest")
_IDEMPOTENCY_KEY = IdempotencyKey(_KEY, "asked")
_REVOKED = ("j", {"terminate": True})
_LEFT = ("j", {"terminate": True, "signal": "left"})


class _Celery:
    """Records what is revoked."""

    def __init__(self) -> None:
        self.control = self
        self.revoked: list[tuple[str, dict[str, Any]]] = []

    def revoke(self, job_id: str, **how: Any) -> None:
        self.revoked.append((job_id, how))


class _Directory:
    def __init__(self) -> None:
        self.records: list[ReplicaRecord] = []

    def replicas(self, _model: str) -> list[ReplicaRecord]:
        return self.records


class _Site:
    """A web process's dispatcher, its hub, and Redis."""

    def __init__(self, socket_path: str, **settings: Any) -> None:
        self.client = gevent_redis.client(socket_path)
        self.hub, self.celery, self.directory = Hub(self.client), _Celery(), _Directory()
        # An outage is final at once.
        values = {"replica_wait_s": 0.0, "request_timeout_s": 600.0, "job_ttl_s": 60}
        self.settings = Settings(**(values | settings))
        celery: Any = self.celery
        directory: Any = self.directory
        self.dispatcher = Dispatcher(self.settings, self.client, celery, self.hub, directory)

    def submit(
        self, job_id: str = "j", key: IdempotencyKey | None = None, **fields: Any
    ) -> Subscription:
        return self.dispatcher.submit(self.job(job_id, **fields), _FREE, key)

    def job(self, job_id: str = "j", **fields: Any) -> Job:
        now = time.time()
        return chat_job(id=job_id, **({"created_at": now, "deadline_at": now + 600} | fields))

    def queued(self) -> list[str]:
        """Ids of the jobs in the queue, the next one first."""
        lists = [self.client.lrange(key, 0, -1)[::-1] for key in names.priority_lists("m")]
        return [json.loads(message)["headers"]["id"] for part in lists for message in part]

    def take(self) -> None:
        """A replica takes the next job and claims it."""
        (job_id, *_) = self.queued()
        for key in names.priority_lists("m"):
            if self.client.rpop(key):
                break
        self.dispatcher.queue.begin(self.dispatcher.find(job_id, None))
        self.client.set(names.lease_key(job_id), Lease("r").encode(), ex=60)

    def log(self, job_id: str, *events: Event) -> None:
        self.client.rpush(names.log_key(job_id), *map(codec.encode_event, events))

    def readers(self, job_id: str = "j") -> set[str]:
        return {channel.decode() for channel in self.client.smembers(names.readers_key(job_id))}

    def flag(self, job_id: str = "j") -> Any:
        return self.client.get(names.cancel_key(job_id))

    def lose(self, command: str, *, is_done: bool, error: type[Exception]) -> None:
        """The next such command fails, done or not done."""
        good = self.client.execute_command

        def once_bad(*words: Any, **options: Any) -> Any:
            if words[0] != command:
                return good(*words, **options)
            self.client.execute_command = good  # type: ignore[method-assign]
            if is_done:
                good(*words, **options)
            raise error("lost")

        self.client.execute_command = once_bad  # type: ignore[method-assign]


@pytest.fixture
def site(redis_socket: str) -> Iterator[_Site]:
    found = _Site(redis_socket)
    # Scripts are known to the server from here on: a call is one command.
    subscription = found.submit("first")
    for each in (subscription, found.dispatcher.follow(subscription.job)):
        found.dispatcher.release(each)
    found.client.flushdb()
    found.celery.revoked.clear()
    yield found
    found.client.close()


@pytest.fixture
def other(redis_socket: str, site: _Site) -> Iterator[_Site]:
    """Another web process."""
    found = _Site(redis_socket)
    yield found
    found.client.close()


# -- ids --------------------------------------------------------------------------------------


def test_a_clients_request_id_is_kept_when_it_is_usable() -> None:
    assert request_id_from("mine.1") == "mine.1"
    for header in (None, "", "a b", "x" * 129):
        assert names.is_request_id(request_id_from(header))
    assert new_request_id() != new_request_id()


# -- submit -----------------------------------------------------------------------------------


def test_a_job_is_queued_and_read(site: _Site) -> None:
    site.submit("before")
    subscription = site.submit()
    assert site.queued() == ["before", "j"]
    assert (subscription.is_first, subscription.had_ended, subscription.num_ahead) == (
        True,
        False,
        1,
    )
    assert subscription.position is not None
    assert site.readers() == {site.hub.channel}
    assert site.dispatcher.find("j", "anonymous") == subscription.job
    assert site.hub.num_streams == 2


def test_a_job_is_charged_with_its_tokens(site: _Site) -> None:
    limits = Limits(tokens_per_minute=100)
    subscription = site.dispatcher.submit(site.job(max_tokens=10), limits)
    assert site.dispatcher.find("j", None).charged_tokens == subscription.job.charged_tokens > 10
    assert subscription.allowances.tokens is not None


def test_a_job_whose_id_is_taken_gets_another(site: _Site) -> None:
    first = site.submit("x" * 128)
    second = site.submit("x" * 128)
    assert first.job.id == "x" * 128
    assert second.job.id.startswith("x" * 96 + "-")
    assert names.is_request_id(second.job.id)
    assert site.queued() == [first.job.id, second.job.id]
    assert site.hub.num_streams == 2
    assert second.stream.job_id == second.job.id
    assert not site.hub.release(first.stream), "the first one has a single reader"


@pytest.mark.parametrize(
    ("limits", "error", "reason"),
    [
        (Limits(requests_per_minute=1), TooManyRequests, "requests"),
        (Limits(tokens_per_minute=20), TooManyTokens, "tokens"),
        (Limits(max_open_requests=1), TooManyRequests, "open"),
        (Limits(max_waiting_requests=1), TooManyRequests, "waiting"),
    ],
)
def test_a_key_beyond_its_limits_is_refused(
    site: _Site, limits: Limits, error: type[Exception], reason: str
) -> None:
    hits = RATE_LIMIT_HITS.labels(reason)._value
    site.dispatcher.submit(site.job("first", max_tokens=10), limits)
    before = hits.get()
    with pytest.raises(error):
        site.dispatcher.submit(site.job(max_tokens=10), limits)
    assert hits.get() == before + 1
    assert site.queued() == ["first"]
    assert site.hub.num_streams == 1


@pytest.mark.parametrize(
    ("state", "error"), [(ReplicaState.READY, QueueFull), (ReplicaState.DRAINING, ReplicaLost)]
)
def test_a_full_queue_is_nobodys_limit(
    redis_socket: str, state: ReplicaState, error: type[Exception]
) -> None:
    site = _Site(redis_socket, max_queue_length=1)
    site.directory.records = [make_replica(state=state)]
    site.submit("first")
    before = [metric.samples for metric in RATE_LIMIT_HITS.collect()]
    with pytest.raises(error):
        site.submit()
    assert [metric.samples for metric in RATE_LIMIT_HITS.collect()] == before
    assert site.hub.num_streams == 1


# -- outages at the admission -----------------------------------------------------------------


@pytest.fixture
def patient(redis_socket: str, site: _Site) -> Iterator[_Site]:
    """A web process that waits for Redis, and has it."""
    found = _Site(redis_socket, replica_wait_s=60.0)
    found.hub.start()
    yield found
    assert found.hub._greenlet is not None
    found.hub._greenlet.kill()
    found.client.close()


@pytest.mark.parametrize("key", [None, _IDEMPOTENCY_KEY])
@pytest.mark.parametrize("is_done", [True, False])
def test_a_job_whose_admission_was_not_heard_of_is_queued_once(
    patient: _Site, key: IdempotencyKey | None, is_done: bool
) -> None:
    patient.lose("EVALSHA", is_done=is_done, error=redis.ConnectionError)
    subscription = patient.submit(key=key)
    assert (subscription.job.id, subscription.is_first) == ("j", True)
    assert patient.queued() == ["j"]
    assert patient.hub.num_streams == 1


@pytest.mark.parametrize("difference", [{"owner": "b"}, {"created_at": 2.0}])
def test_a_job_of_the_same_id_that_is_another_is_not_taken_for_it(
    site: _Site, difference: dict[str, Any]
) -> None:
    site.submit(**({"owner": "a", "created_at": 1.0}))
    subscription = site.submit(**({"owner": "a", "created_at": 1.0} | difference))
    assert subscription.job.id != "j"
    assert len(site.queued()) == 2


@pytest.mark.parametrize("error", [redis.ConnectionError, redis.ResponseError])
def test_an_outage_that_lasts_is_an_error_and_leaves_no_stream(
    site: _Site, error: type[Exception]
) -> None:
    site.lose("EVALSHA", is_done=False, error=error)
    with pytest.raises(error):
        site.submit()
    assert site.hub.num_streams == 0


def test_what_redis_refuses_is_not_tried_again(patient: _Site) -> None:
    patient.lose("EVALSHA", is_done=False, error=redis.ResponseError)
    with pytest.raises(redis.ResponseError):
        patient.submit()


# -- idempotency keys -------------------------------------------------------------------------


def test_a_repeated_request_reads_the_job_of_the_first(site: _Site, other: _Site) -> None:
    site.submit(key=_IDEMPOTENCY_KEY)
    again = other.submit("again", key=_IDEMPOTENCY_KEY)
    assert (again.job.id, again.is_first, again.had_ended) == ("j", False, False)
    assert site.queued() == ["j"]
    assert site.readers() == {site.hub.channel, other.hub.channel}
    assert other.hub.num_streams == 1


def test_a_repeated_request_of_a_finished_one_reads_its_log(site: _Site) -> None:
    site.submit(key=_IDEMPOTENCY_KEY)
    site.log("j", _STARTED, _FINISHED)
    again = site.submit("again", key=_IDEMPOTENCY_KEY)
    assert (again.job.id, again.had_ended) == ("j", True)
    assert again.stream.read(0) == [_STARTED, _FINISHED]


def test_a_key_that_is_used_for_another_request_is_refused(site: _Site) -> None:
    site.submit(key=_IDEMPOTENCY_KEY)
    with pytest.raises(IdempotencyKeyReused):
        site.submit("again", key=IdempotencyKey(_KEY, "asked otherwise"))
    assert site.queued() == ["j"]
    assert site.hub.num_streams == 1


def _end_with(error: type[EngineError | RequestCancelled | InvalidRequest]) -> Failed:
    return Failed(0, 0, error.status, error.code, "x")


@pytest.mark.parametrize("how", ["failed", "cancelled", "to be cancelled", "gone"])
def test_a_request_that_came_to_nothing_is_run_anew(site: _Site, how: str) -> None:
    site.submit(key=_IDEMPOTENCY_KEY)
    site.take()
    match how:
        case "failed":
            site.log("j", _end_with(EngineError))
        case "cancelled":
            site.log("j", _end_with(RequestCancelled))
        case "to be cancelled":
            site.dispatcher.cancel("j", None)
        case "gone":
            site.client.delete(names.job_key("j"))
    again = site.submit("again", key=_IDEMPOTENCY_KEY)
    assert (again.job.id, again.is_first) == ("again", True)
    assert site.queued() == ["again"]
    third = site.submit("third", key=_IDEMPOTENCY_KEY)
    assert third.job.id == "again", "the key stands for the new one"


def test_a_request_that_its_client_got_wrong_stays_wrong(site: _Site) -> None:
    site.submit(key=_IDEMPOTENCY_KEY)
    site.log("j", _end_with(InvalidRequest))
    assert site.submit("again", key=_IDEMPOTENCY_KEY).job.id == "j"


def test_a_finished_request_is_not_void_for_a_cancellation_that_came_late(site: _Site) -> None:
    site.submit(key=_IDEMPOTENCY_KEY)
    site.dispatcher.cancel("j", None)
    site.log("j", _STARTED, _FINISHED)
    assert site.submit("again", key=_IDEMPOTENCY_KEY).job.id == "j"


def test_the_first_request_that_was_left_goes_on(site: _Site, other: _Site) -> None:
    subscription = site.submit(key=_IDEMPOTENCY_KEY)
    site.take()
    site.dispatcher.release(subscription)
    assert site.flag() == names.LEFT
    again = other.submit("again", key=_IDEMPOTENCY_KEY)
    assert (again.job.id, again.is_first) == ("j", False)
    assert other.queued() == ["j"]
    assert other.flag() is None


# -- find and follow --------------------------------------------------------------------------


def test_a_job_is_found_by_its_owner_and_by_those_who_may_see_all(site: _Site) -> None:
    job = site.submit(owner="a").job
    assert site.dispatcher.find("j", "a") == site.dispatcher.find("j", None) == job
    site.log("j", _STARTED)
    for job_id, owner in (("j", "b"), ("unknown", "a"), ("j:log", None)):
        with pytest.raises(NotFound):
            site.dispatcher.find(job_id, owner)


def test_a_job_that_has_ended_is_found_while_its_log_is_there(site: _Site) -> None:
    job = messages.without_request(site.submit().job)
    site.client.set(names.job_key("j"), codec.encode_job(job))
    with pytest.raises(NotFound):
        site.dispatcher.find("j", None)
    site.log("j", _FINISHED)
    assert site.dispatcher.find("j", None) == job


def test_a_job_is_followed_from_its_first_event_on(site: _Site, other: _Site) -> None:
    job = site.submit().job
    site.take()
    site.log("j", _STARTED)
    subscription = other.dispatcher.follow(job)
    assert (subscription.is_first, subscription.had_ended) == (False, False)
    assert subscription.stream.read(0) == [_STARTED]
    assert other.readers() == {site.hub.channel, other.hub.channel}
    assert other.queued() == []


def test_the_past_is_read_without_becoming_a_reader(site: _Site, other: _Site) -> None:
    job = site.submit().job
    site.log("j", _STARTED, _FINISHED)
    assert other.dispatcher.follow(job).had_ended
    assert other.readers() == {site.hub.channel}


def test_a_job_that_is_gone_cannot_be_followed(site: _Site, other: _Site) -> None:
    job = site.submit().job
    site.client.delete(names.job_key("j"))
    with pytest.raises(NotFound):
        other.dispatcher.follow(job)
    assert other.hub.num_streams == 0


def test_an_outage_while_a_job_is_joined_leaves_it(site: _Site, other: _Site) -> None:
    job = site.submit().job
    other.lose("EVALSHA", is_done=True, error=redis.ConnectionError)
    with pytest.raises(redis.ConnectionError):
        other.dispatcher.follow(job)
    assert other.hub.num_streams == 0
    assert other.readers() == {site.hub.channel}


def test_an_answer_is_resumed_by_an_event_of_it(site: _Site, other: _Site) -> None:
    site.submit()
    site.log("j", _STARTED)
    subscription = other.dispatcher.resume(EventId("j", 1), "anonymous", JobKind.CHAT)
    assert (subscription.job.id, subscription.is_first) == ("j", False)
    assert subscription.stream.read(0) == [_STARTED]


def test_what_is_not_the_owners_or_cannot_be_streamed_is_not_resumed(site: _Site) -> None:
    site.submit()
    site.submit("best", num_choices=3)
    for job_id, owner, kind, error in (
        ("j", "stranger", None, NotFound),
        ("j", "anonymous", JobKind.COMPLETION, InvalidRequest),
        ("best", "anonymous", None, InvalidRequest),
    ):
        with pytest.raises(error):
            site.dispatcher.resume(EventId(job_id), owner, kind)
    assert site.hub.num_streams == 2


# -- release ----------------------------------------------------------------------------------


def test_a_waiting_job_that_its_last_reader_leaves_is_out_of_the_queue(site: _Site) -> None:
    site.dispatcher.release(site.submit())
    assert site.queued() == []
    assert site.celery.revoked == []
    assert site.flag() == names.LEFT
    assert 0 < site.client.ttl(names.job_key("j")) <= site.settings.job_ttl_s


def test_a_running_job_that_its_last_reader_leaves_is_stopped(site: _Site) -> None:
    subscription = site.submit()
    site.take()
    site.dispatcher.release(subscription)
    assert site.celery.revoked == [_LEFT]
    assert site.dispatcher.status_of(subscription.job) == JobStatus("r", False, True, 0)


def test_a_job_that_another_process_reads_goes_on(site: _Site, other: _Site) -> None:
    subscription = site.submit()
    other.dispatcher.follow(subscription.job)
    site.dispatcher.release(subscription)
    assert site.readers() == {other.hub.channel}
    assert (site.queued(), site.flag()) == (["j"], None)


def test_a_job_that_another_stream_of_this_process_reads_goes_on(site: _Site) -> None:
    subscription = site.submit()
    second = site.dispatcher.follow(subscription.job)
    site.dispatcher.release(subscription)
    assert site.readers() == {site.hub.channel}
    site.dispatcher.release(second)
    assert site.readers() == set()


@pytest.mark.parametrize("priority", [Priority.BACKGROUND, Priority.BATCH])
def test_a_job_in_the_background_goes_on_without_readers(site: _Site, priority: Priority) -> None:
    site.dispatcher.release(site.submit(priority=priority))
    assert site.readers() == set()
    assert (site.queued(), site.flag(), site.celery.revoked) == (["j"], None, [])


def test_a_job_that_has_ended_is_not_left(site: _Site) -> None:
    subscription = site.submit()
    subscription.stream.push(Finished(0, 0, Usage(1, 1), Timings(0, 0, 0)))
    subscription.stream.read(0)
    site.dispatcher.release(subscription)
    assert site.flag() is None


def test_the_past_is_not_left(site: _Site, other: _Site) -> None:
    job = site.submit().job
    site.log("j", _STARTED, _FINISHED)
    site.client.delete(names.readers_key("j"))
    other.dispatcher.release(other.dispatcher.follow(job))
    assert other.flag() is None
    assert other.celery.revoked == []


def test_an_outage_while_a_job_is_left_is_the_hubs_to_mend(
    site: _Site, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = site.submit()
    site.take()
    site.lose("EVALSHA", is_done=False, error=redis.ConnectionError)
    site.dispatcher.release(subscription)
    assert "could not leave a job" in caplog.text
    assert (site.hub.num_streams, site.flag()) == (0, None)
    site.hub.on_stray("j")
    assert site.flag() == names.LEFT
    assert site.celery.revoked == [_LEFT]


def test_an_outage_while_a_stray_is_left_is_logged(
    site: _Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.submit()
    site.lose("GET", is_done=False, error=redis.ConnectionError)
    site.dispatcher.leave_unread("j")
    assert "could not leave a job" in caplog.text


def test_a_stray_that_is_gone_needs_nothing(site: _Site) -> None:
    site.dispatcher.leave_unread("j")
    assert site.flag() is None
    assert site.celery.revoked == []


# -- requeue and cancel -----------------------------------------------------------------------


def test_a_lost_job_is_queued_before_all_others_for_its_reader(site: _Site) -> None:
    job = site.submit().job
    site.take()
    site.submit("waits")
    site.client.delete(names.readers_key("j"))
    site.dispatcher.requeue(job)
    assert site.queued() == ["j", "waits"]
    assert site.readers() == {site.hub.channel}


def test_a_cancelled_job_is_flagged_and_revoked(site: _Site) -> None:
    job = site.submit().job
    site.dispatcher.cancel("j", "anonymous")
    assert site.dispatcher.status_of(job).is_cancelled
    assert site.celery.revoked == [_REVOKED]


@pytest.mark.parametrize("error", [None, EngineError, RequestCancelled])
def test_a_job_that_has_ended_stays_as_it_is(site: _Site, error: Any) -> None:
    site.submit()
    end = _FINISHED if error is None else _end_with(error)
    site.log("j", _STARTED, end)
    assert site.dispatcher.cancel("j", "anonymous") == end
    assert site.flag() is None
    assert site.celery.revoked == []


def test_nobody_cancels_a_job_of_another(site: _Site) -> None:
    site.submit(owner="a")
    with pytest.raises(NotFound):
        site.dispatcher.cancel("j", "b")
    assert site.flag() is None
    assert site.celery.revoked == []


def test_a_job_shows_its_log_and_its_end(site: _Site) -> None:
    job = site.submit().job
    assert site.dispatcher.end_of(job) is None
    site.log("j", _STARTED)
    assert site.dispatcher.end_of(job) is None, "it has begun"
    site.log("j", _FINISHED)
    assert site.dispatcher.log_of(job) == [_STARTED, _FINISHED]
    assert site.dispatcher.end_of(job) == _FINISHED
