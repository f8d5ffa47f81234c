"""What a relay reads, when it wakes, what it records, and how it ends."""

from functools import partial
from itertools import islice

import pytest

from app.errors import ClientGone
from app.jobs.status import JobStatus
from app.metrics.buffered import metrics_of
from app.metrics.definitions import RESUMES
from app.metrics.request_record import Outcome
from app.streaming.watchdog import TICK_S
from shared.errors import EngineError
from shared.queue.snapshot import QueuePosition
from shared.wire.events import Delta, Echo, Embedding, Event
from shared.wire.job import ChatMessage
from tests.support.chat_jobs import chat_job
from tests.support.relay_bench import (
    DELTA,
    FINISHED,
    QUEUED,
    RUNNING,
    STARTED,
    RelayBench,
    begun,
    failed,
)

# -- reading ---------------------------------------------------------------------------------


def test_the_job_of_a_relay_holds_no_request(bench: RelayBench) -> None:
    bench.job = chat_job(ChatMessage("user", "long"), prompts=["long"], suffix="long")
    job = bench.relay()._subscription.job
    assert (job.id, job.messages, job.prompts, job.suffix) == ("j", [], [], None)


def test_the_first_events_are_given_as_soon_as_they_are_there(bench: RelayBench) -> None:
    relay = bench.relay()
    bench.stream.push(STARTED)
    began_at = bench.clock.now
    assert relay.first_events() == [STARTED]
    assert bench.clock.now == began_at


def test_the_first_events_are_waited_for_one_keepalive_interval(bench: RelayBench) -> None:
    began_at = bench.clock.now
    assert bench.relay().first_events() == []
    assert bench.clock.now - began_at == bench.settings.keepalive_s


@pytest.mark.parametrize("before", [(), (STARTED,), (Embedding(0, 0, 0, b""),)])
def test_a_failure_before_the_first_text_is_raised_by_first_events(
    bench: RelayBench, before: tuple[Event, ...]
) -> None:
    relay = bench.relay()
    bench.push(*before, failed(len(before)))
    with pytest.raises(EngineError, match="it broke"):
        relay.first_events()


@pytest.mark.parametrize("text", [Delta(0, 0, 0, "a", [1]), Echo(0, 0, 0, "a")])
def test_a_failure_behind_text_is_kept_for_the_next_call(bench: RelayBench, text: Event) -> None:
    relay = bench.relay()
    bench.push(text, failed(1))
    first = relay.first_events()
    assert first == [text]
    batches = relay.events(first)
    assert next(batches) == [text]
    with pytest.raises(EngineError):
        next(batches)


def test_the_events_end_with_the_last_one(bench: RelayBench) -> None:
    relay = bench.relay()
    bench.stream.meanwhile = [partial(bench.push, STARTED), partial(bench.push, DELTA, FINISHED)]
    batches = relay.events(relay.first_events())
    assert list(islice(batches, 5)) == [[STARTED], [DELTA, FINISHED]]


def test_a_silent_job_gives_a_batch_of_nothing_twice_in_a_keepalive_interval(
    bench: RelayBench,
) -> None:
    _, batches = begun(bench)
    began_at = bench.clock.now
    assert [next(batches), next(batches)] == [[], []]
    assert bench.clock.now - began_at == bench.settings.keepalive_s


def test_a_closed_stream_ends_the_events_with_its_error(bench: RelayBench) -> None:
    _, batches = begun(bench)
    bench.stream.close()
    with pytest.raises(ClientGone):
        next(batches)


def test_lag_is_measured_of_events_that_were_published_alone(bench: RelayBench) -> None:
    lag = metrics_of("m").stream_lag
    relay, batches = begun(bench)
    before = sum(lag._counts)
    bench.stream.push(STARTED, bench.clock.time())
    next(batches)
    relay.delivered()
    assert sum(lag._counts) == before + 1
    bench.log.events = [STARTED, DELTA]
    bench.stream.push_repair()
    assert next(batches) == [DELTA]
    relay.delivered()
    assert sum(lag._counts) == before + 1, "what comes from the log was not published just now"


def test_what_is_read_becomes_a_fact_of_the_request(bench: RelayBench) -> None:
    _, batches = begun(bench)
    bench.stream.push(STARTED)
    next(batches)
    assert bench.record.started == STARTED


# -- a job that was there before --------------------------------------------------------------


def test_a_resumed_job_needs_no_replica_until_it_is_found_unwell(bench: RelayBench) -> None:
    bench.registry.is_served_now = False
    before = RESUMES.labels("m")._value.get()
    assert bench.relay(is_first=False).first_events() == []
    assert bench.registry.ensured == []
    assert RESUMES.labels("m")._value.get() == before + 1


def test_a_new_job_is_no_resume(bench: RelayBench) -> None:
    before = RESUMES.labels("m")._value.get()
    bench.relay()
    assert RESUMES.labels("m")._value.get() == before


# -- the place in the queue -------------------------------------------------------------------


def test_the_position_is_known_while_the_job_waits_and_forgotten_when_it_begins(
    bench: RelayBench,
) -> None:
    relay = bench.relay(position=QueuePosition(2, 1, 2))
    assert relay.queue_position is None
    bench.positions.refresh([])
    assert relay.queue_position == 1
    assert not bench.stream._queue.empty(), "the reader is woken to tell it"
    bench.stream.push(STARTED)
    assert next(relay.events([])) == [STARTED]
    assert relay.queue_position is None
    assert not bench.positions._watched


def test_a_job_that_this_process_has_not_queued_has_no_position(bench: RelayBench) -> None:
    relay = bench.relay()
    bench.positions.refresh([])
    assert relay.queue_position is None


# -- what the watchdog notes -------------------------------------------------------------------


def test_a_reader_is_silent_when_it_has_waited_for_a_tick(bench: RelayBench) -> None:
    relay = bench.relay()
    assert not relay.is_silent, "it has not read yet"
    seen: list[bool] = []
    for after_s in (TICK_S / 2, TICK_S / 2):

        def look(after_s: float = after_s) -> None:
            bench.clock.now += after_s
            seen.append(relay.is_silent)
            bench.stream.wake()

        bench.stream.meanwhile.append(look)
    batches = relay.events([])
    assert [next(batches), next(batches)] == [[], []]
    assert seen == [False, True], "to be woken for nothing is no event"
    bench.stream.push(STARTED)
    next(batches)
    assert not relay.is_silent


def test_events_that_were_not_heard_are_read_from_the_log(bench: RelayBench) -> None:
    relay, batches = begun(bench)
    for events in ([], [STARTED]):
        bench.log.events = list(events)
        bench.tell(relay, JobStatus(None, True, False, num_events=1))
        assert next(batches) == events
    assert next(batches) == [], "and that is all that was to be done"


def test_a_finding_that_events_have_overtaken_is_dropped(bench: RelayBench) -> None:
    """The job was too old in the queue when the watchdog looked, and began a moment later."""
    bench.set(max_queue_s=1.0)
    relay, batches = begun(bench)
    bench.clock.now += 60
    relay.note(QUEUED)
    bench.stream.push(STARTED)
    assert next(batches) == [STARTED]
    assert next(batches) == []


def test_a_finding_that_a_later_one_has_overtaken_is_dropped(bench: RelayBench) -> None:
    """The reader was busy with its client when the job began."""
    bench.set(max_queue_s=1.0)
    relay, batches = begun(bench)
    bench.clock.now += 60
    relay.note(QUEUED)
    bench.registry.alive = {"r"}
    relay.note(RUNNING)
    assert next(batches) == []


# -- the end ----------------------------------------------------------------------------------


def test_a_closed_relay_is_forgotten_and_its_subscription_released(bench: RelayBench) -> None:
    with pytest.raises(ClientGone), bench.relay(position=QueuePosition(2, 1, 2)) as relay:
        assert bench.border.watched == {relay}
        raise ClientGone
    assert bench.border.watched == set()
    assert bench.border.released == ["j"]
    assert not bench.positions._watched
    assert bench.record.outcome is Outcome.CLIENT_GONE


def test_a_relay_that_is_closed_without_an_error_has_finished(bench: RelayBench) -> None:
    with bench.relay():
        pass
    assert bench.record.outcome is Outcome.FINISHED
