"""Where the waiting jobs of a web process stand, and who is woken when that is known."""

from collections.abc import Iterator

import pytest
import redis

from app.streaming.queue_monitor import QueuePositions, WatchedPosition
from shared.limits import Limits
from shared.queue.job_queue import JobQueue
from shared.queue.snapshot import QueuePosition, QueueSnapshot
from tests.support.jobs import completion_job

INTERACTIVE = 1
"""Index of the list of interactive jobs among those of a queue."""


def _order(number: int) -> QueuePosition:
    return QueuePosition(INTERACTIVE + 1, number, number)


def _outline(*numbers: int, oldest_at: float | None = None) -> QueueSnapshot:
    """A queue in which the jobs of these numbers wait."""
    orders: list[list[QueuePosition]] = [[], [], [], []]
    indexes: list[list[int]] = [[], [], [], []]
    orders[INTERACTIVE] = [_order(number) for number in numbers]
    indexes[INTERACTIVE] = list(range(len(numbers)))
    return QueueSnapshot([0, len(numbers), 0, 0], orders, indexes, oldest_at)


class _Queues:
    """Stands in for a JobQueue: the queue of a model is what was put there last."""

    def __init__(self) -> None:
        self.found: dict[str, QueueSnapshot | redis.RedisError] = {}
        self.asked: list[str] = []

    def snapshot(self, model: str) -> QueueSnapshot:
        self.asked.append(model)
        found = self.found.get(model, _outline())
        if isinstance(found, redis.RedisError):
            raise found
        return found


class _Watch:
    """The places of some jobs, and which of them were woken."""

    def __init__(self) -> None:
        self.queues = _Queues()
        self.positions = QueuePositions(self.queues)  # type: ignore[arg-type]
        self.woken: list[str] = []

    def place(self, name: str, number: int, model: str = "m") -> WatchedPosition:
        return self.positions.watch(model, _order(number), lambda: self.woken.append(name))

    def refresh(self, *numbers: int, waiting: tuple[str, ...] = ()) -> None:
        self.queues.found["m"] = _outline(*numbers)
        self.positions.refresh(waiting)


@pytest.fixture
def watch() -> Iterator[_Watch]:
    yield _Watch()


def test_a_position_is_unknown_until_the_first_look(watch: _Watch) -> None:
    place = watch.place("a", 1)
    assert (place.num_ahead, watch.woken) == (None, [])


def test_a_reader_is_woken_when_its_position_is_known_for_the_first_time(watch: _Watch) -> None:
    place = watch.place("a", 2)
    watch.refresh(1, 2, 3)
    assert (place.num_ahead, watch.woken) == (1, ["a"])


def test_the_head_of_the_queue_is_a_position_too(watch: _Watch) -> None:
    """0 is not the same as unknown: it wakes once, like any other."""
    place = watch.place("a", 1)
    watch.refresh(1)
    watch.refresh(1)
    assert (place.num_ahead, watch.woken) == (0, ["a"])


def test_a_position_moves_without_waking_its_reader_again(watch: _Watch) -> None:
    place = watch.place("a", 3)
    found = []
    for waiting in ((1, 2, 3), (2, 3), (3,)):
        watch.refresh(*waiting)
        found.append(place.num_ahead)
    assert (found, watch.woken) == ([2, 1, 0], ["a"])


def test_a_job_that_has_left_its_queue_has_no_position(watch: _Watch) -> None:
    place = watch.place("a", 1)
    watch.refresh(1, 2)
    watch.refresh(2)
    assert (place.num_ahead, watch.woken) == (None, ["a"])


def test_a_job_that_was_never_seen_waiting_wakes_nobody(watch: _Watch) -> None:
    place = watch.place("a", 1)
    watch.refresh(2)
    assert (place.num_ahead, watch.woken) == (None, [])


def test_a_position_that_was_lost_and_is_known_again_wakes_again(watch: _Watch) -> None:
    place = watch.place("a", 2)
    for waiting in ((2,), (3,), (1, 2)):
        watch.refresh(*waiting)
    assert (place.num_ahead, watch.woken) == (1, ["a", "a"])


def test_a_forgotten_place_has_no_position_and_is_not_looked_up(watch: _Watch) -> None:
    gone, stays = watch.place("gone", 1), watch.place("stays", 2)
    watch.refresh(1, 2)
    watch.positions.forget(gone)
    watch.positions.forget(gone)
    assert (gone.num_ahead, stays.num_ahead) == (None, 1)
    watch.refresh(1, 2)
    assert (gone.num_ahead, stays.num_ahead) == (None, 1)
    assert watch.woken.count("gone") == 1


def test_places_of_equal_jobs_are_kept_apart(watch: _Watch) -> None:
    """Two readers of one job: the one that leaves takes only its own place along."""
    first, second = watch.place("first", 1), watch.place("second", 1)
    watch.positions.forget(first)
    watch.refresh(1)
    assert (first.num_ahead, second.num_ahead) == (None, 0)


def test_a_reader_may_leave_when_it_is_woken(watch: _Watch) -> None:
    places: list[WatchedPosition] = []
    for number in (1, 2):
        place = watch.positions.watch(
            "m", _order(number), lambda i=number - 1: watch.positions.forget(places[i])
        )
        places.append(place)
    watch.refresh(1, 2)
    assert [place.num_ahead for place in places] == [None, None]


def test_one_look_serves_all_places_of_a_model(watch: _Watch) -> None:
    for number in (1, 2, 3):
        watch.place(str(number), number)
    watch.place("other", 1, model="other")
    watch.refresh(1, 2, 3, waiting=("m",))
    assert sorted(watch.queues.asked) == ["m", "other"]
    assert sorted(watch.woken) == ["1", "2", "3"]


def test_places_of_another_model_are_not_mixed_up(watch: _Watch) -> None:
    here, there = watch.place("here", 2), watch.place("there", 2, model="other")
    watch.queues.found["other"] = _outline(2)
    watch.refresh(1, 2)
    assert (here.num_ahead, there.num_ahead) == (1, 0)


def test_queues_that_nobody_waits_in_are_not_asked_about(watch: _Watch) -> None:
    watch.positions.forget(watch.place("a", 1))
    watch.refresh(1)
    assert watch.queues.asked == []


def test_an_error_of_redis_leaves_what_was_known(watch: _Watch) -> None:
    watch.queues.found["m"] = _outline(1, oldest_at=5.0)
    place = watch.place("a", 1)
    watch.positions.refresh(["m"])
    watch.queues.found["m"] = redis.ConnectionError("away")
    with pytest.raises(redis.ConnectionError):
        watch.positions.refresh(["m"])
    assert (place.num_ahead, watch.positions.oldest_at("m")) == (0, 5.0)


# -- ages ------------------------------------------------------------------------------------


def test_the_oldest_of_a_queue_that_others_wait_in(watch: _Watch) -> None:
    """Whoever asked for it: no place of this process is needed."""
    watch.queues.found["busy"] = _outline(1, oldest_at=7.0)
    watch.positions.refresh(["busy"])
    assert watch.positions.oldest_at("busy") == 7.0
    assert watch.positions.oldest_at("other") is None


def test_an_empty_queue_has_no_oldest(watch: _Watch) -> None:
    watch.queues.found["m"] = _outline(1, oldest_at=7.0)
    watch.positions.refresh(["m"])
    watch.queues.found["m"] = _outline()
    watch.place("a", 1)
    watch.positions.refresh([])
    assert watch.positions.oldest_at("m") is None


# -- with a real queue -----------------------------------------------------------------------


def test_positions_in_a_real_queue(server: redis.Redis) -> None:
    queue = JobQueue(server, 60)
    positions = QueuePositions(queue)
    places, woken = [], []
    for i in range(3):
        job = completion_job(id=f"j{i}", owner="a", created_at=1000.0 + i)
        order = queue.admit(job, "c", Limits(), 100).position
        assert order is not None
        places.append(positions.watch("m", order, lambda i=i: woken.append(i)))  # type: ignore[misc]
    positions.refresh([])
    assert [place.num_ahead for place in places] == [0, 1, 2]
    assert sorted(woken) == [0, 1, 2]
    queue.leave(job, "c", places[2].position)
    server.rpop("model.m\x06\x163")
    positions.refresh([])
    assert [place.num_ahead for place in places[:2]] == [None, 0]
    assert positions.oldest_at("m") == 1001.0
