"""Where the waiting jobs of this process stand in their queues: asked about with every beat, for
all jobs of a model together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.job_queue import JobQueue, Order


@dataclass(eq=False, slots=True)
class Place:
    """One waiting job's."""

    model: str
    order: Order
    on_found: Callable[[], None]
    """Called when the position is known for the first time. Must not block."""
    position: int | None = None
    """Messages before it; None = not known yet, or it does not wait any more."""


class Positions:
    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._places: set[Place] = set()
        self._oldest_at: dict[str, float] = {}

    def watch(self, model: str, order: Order, on_found: Callable[[], None]) -> Place:
        """Keep a place up to date, until it is forgotten."""
        place = Place(model, order, on_found)
        self._places.add(place)
        return place

    def forget(self, place: Place) -> None:
        place.position = None
        self._places.discard(place)

    def oldest_at(self, model: str) -> float | None:
        """Unix time at which the oldest request was made that waits; see `Outline.oldest_at`."""
        return self._oldest_at.get(model)

    def refresh(self, waiting: Iterable[str]) -> None:
        """`waiting`: the models whose queues are not empty. Raises redis.RedisError."""
        oldest_at: dict[str, float] = {}
        for model in {place.model for place in self._places}.union(waiting):
            outline = self._queue.outline(model)
            if outline.oldest_at is not None:
                oldest_at[model] = outline.oldest_at
            for place in [place for place in self._places if place.model == model]:
                is_new = place.position is None
                place.position = outline.position(place.order)
                if is_new and place.position is not None:
                    place.on_found()
        self._oldest_at = oldest_at
