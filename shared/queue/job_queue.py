"""The queue of jobs: who is admitted, who is next, who comes again.

A model's queue is its Celery queue: a Redis list for each priority, from which replicas take
messages with BRPOP. Inside a list the messages of different keys take turns: `admit` puts each
one into its place. What a key has waiting and running is kept in sorted sets whose members
expire with their jobs, so that nothing that is lost counts for ever.
"""

from bisect import bisect_right
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import redis
from msgspec import Struct

from shared import essential, messages, names
from shared.connections import payload_bytes
from shared.limits import Allowance, Allowances, Limits
from shared.messages import Job, Priority
from shared.queue_message import FIRST, queue_message

_PLACES = {Priority.INTERACTIVE: 2, Priority.BACKGROUND: 3, Priority.BATCH: 4}
"""Priority → place of its list, from 1; the first list is for jobs that come again."""
_LUA = Path(__file__).parent / "lua"


class Order(NamedTuple):
    """The place of a waiting message: what `Outline.position` and `leave` find it by."""

    place: int
    tag: int
    number: int


class Outline(NamedTuple):
    """A queue as it was a moment ago."""

    lengths: list[int]
    """Of each list."""
    orders: list[list[Order]]
    """Of each list: some messages, the next one first, among them the next 64."""
    indexes: list[list[int]]
    """How many messages of its list are before each of them."""
    oldest_at: float | None = None
    """Unix time at which the oldest request among these messages was made. Which is the oldest
    of all, unless the next 64 of its list are of as many other keys."""

    @classmethod
    def of(cls, reply: list[list[int]]) -> "Outline":
        """Read what outline.lua says."""
        orders = [
            [Order(place, *pair) for pair in zip(found[3::3], found[4::3], strict=True)]
            for place, found in enumerate(reply, 1)
        ]
        made_ms = [found[1] for found in reply if found[1]]
        return cls(
            [found[0] for found in reply],
            orders,
            [found[2::3] for found in reply],
            min(made_ms) / 1000 if made_ms else None,
        )

    def position(self, order: Order) -> int | None:
        """How many messages are before one; None = it does not wait any more. Exact among the
        next 64 of its list, and within a hundredth of the list's length behind them."""
        orders, indexes = self.orders[order.place - 1], self.indexes[order.place - 1]
        after = bisect_right(orders, order)
        if after == 0:
            return None
        exact = orders[after - 1] == order
        ahead = sum(self.lengths[: order.place - 1])
        return ahead + indexes[after - 1] + (0 if exact else 1)


class Refusal(StrEnum):
    """Why a job was not admitted."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    OPEN = "open"
    WAITING = "waiting"
    QUEUE = "queue"
    TAKEN = "taken"
    """There is a job of that id."""
    REPEATED = "repeated"
    """There is a job of that idempotency key."""


class Admission(Struct, frozen=True, kw_only=True):
    """What became of a request for admission."""

    refusal: Refusal | None = None
    order: Order | None = None
    """With an admitted job."""
    ahead: int = 0
    """Messages before it, or those that fill the queue."""
    retry_s: float = 0.0
    """With REQUESTS and TOKENS: until there is enough again."""
    known_fingerprint: str = ""
    known_id: str = ""
    """With REPEATED."""
    allowances: Allowances = Allowances()


class Rescue(StrEnum):
    """What became of a job whose replica is gone or gives it away."""

    QUEUED = "queued"
    TAKEN = "taken"
    """Somebody else has done it, or it was done before."""
    LEFT = "left"
    """Nobody reads it."""
    GONE = "gone"


class Departure(StrEnum):
    """What a reader leaves behind."""

    READ_BY_OTHERS = "read by others"
    TO_BE_STOPPED = "to be stopped"
    """Nobody reads it; a replica may run it."""
    OUT_OF_QUEUE = "out of queue"
    """Nobody reads it, and no replica will get it."""


class JobQueue:
    """All methods raise redis.RedisError."""

    def __init__(self, client: "redis.Redis", job_ttl_s: int) -> None:
        """`job_ttl_s`: how long what belongs to a job stays, from its admission on."""
        self._client = client
        self._ttl_s = job_ttl_s
        # What is new is refused on a full Redis: before its first write.
        self._admit = _script(client, "order", "admit", first_line="#!lua\n")
        self._again = _script(client, "order", "again")
        self._leave = _script(client, "order", "leave")
        self._begin = _script(client, "begin")
        self._settle = _script(client, "settle")
        self._outline = _script(client, "order", "outline")
        self._where = _script(client, "where")
        self._forget = _script(client, "forget")
        self._turn = _script(client, "turn")

    # -- the web tier's side -----------------------------------------------------------------

    def admit(
        self,
        job: Job,
        channel: str,
        limits: Limits,
        max_queue_length: int,
        *,
        idempotency_key: str = "",
        fingerprint: str = "",
    ) -> Admission:
        """Store and queue a job if its key's limits let it through; else leave no trace.

        `idempotency_key` is a key made by `names.idempotency_key`, `fingerprint` says what was
        asked under it.
        """
        place = _PLACES[job.priority]
        reply: list[Any] = self._admit(
            keys=[
                names.job_key(job.id),
                names.readers_key(job.id),
                names.waiting_key(job.owner),
                names.running_key(job.owner),
                names.rates_key(job.owner),
                names.turns_key(job.model),
                names.tags_key(job.model, place),
                idempotency_key,
                names.claim_key(job.id),
                names.log_key(job.id),
                names.cancel_key(job.id),
                *names.priority_lists(job.model),
            ],
            args=[
                job.id,
                messages.encode_job(job),
                queue_message(job, names.PRIORITY_STEPS[place - 1]),
                self._ttl_s,
                place,
                channel,
                job.deadline_at,
                job.charged_tokens,
                fingerprint if idempotency_key else "",
                max_queue_length,
                limits.max_waiting_requests,
                limits.max_open_requests,
                limits.requests_per_minute,
                limits.tokens_per_minute,
                job.owner,
            ],
        )
        verdict = payload_bytes(reply[0]).decode()
        if verdict == "admitted":
            tag, number, ahead, *left = reply[1:]
            return Admission(
                order=Order(place, tag, number), ahead=ahead, allowances=_allowances(limits, left)
            )
        refusal = Refusal(verdict)
        if refusal is Refusal.REPEATED:
            known_fingerprint, known_id = payload_bytes(reply[1]).decode().split(" ", 1)
            return Admission(
                refusal=refusal, known_fingerprint=known_fingerprint, known_id=known_id
            )
        if refusal is Refusal.TAKEN:
            return Admission(refusal=refusal)
        value, *left = reply[1:]
        is_rate = refusal in (Refusal.REQUESTS, Refusal.TOKENS)
        return Admission(
            refusal=refusal,
            ahead=0 if is_rate else value,
            retry_s=value / 1000 if is_rate else 0.0,
            allowances=_allowances(limits, left),
        )

    def join(self, job: Job, channel: str) -> bool:
        """Make a channel a reader of a job; one that had been left is queued again.

        False when the job is gone.
        """
        return self._queue_again(job, "join", channel=channel) != "gone"

    def requeue(self, job: Job, channel: str = "") -> None:
        """Queue a job again whose message or replica is lost. For its reader, whose channel it
        is: he may have been taken for gone.

        Sent twice does no harm: the claim on the job lets one delivery through.
        """
        self._queue_again(job, "requeue", channel=channel)

    def rescue(self, job: Job, holder: str) -> Rescue:
        """Queue a job again that a replica has or had, if it is not to stay where it is."""
        return Rescue(self._queue_again(job, "rescue", holder=holder))

    def _queue_again(self, job: Job, why: str, *, channel: str = "", holder: str = "") -> str:
        place = _PLACES[job.priority]
        lists = names.priority_lists(job.model)
        reply = self._again(
            keys=[
                names.job_key(job.id),
                names.readers_key(job.id),
                names.cancel_key(job.id),
                names.waiting_key(job.owner),
                names.running_key(job.owner),
                lists[0],
                names.held_key(holder),
                names.claim_key(job.id),
                names.log_key(job.id),
                names.turns_key(job.model),
                lists[place - 1],
            ],
            args=[
                channel,
                self._ttl_s,
                job.id,
                job.deadline_at,
                queue_message(job, names.PRIORITY_STEPS[0], FIRST),
                why,
                place,
                queue_message(job, names.PRIORITY_STEPS[place - 1]),
            ],
        )
        return payload_bytes(reply).decode()

    def leave(self, job: Job, channel: str, order: Order | None) -> Departure:
        """Take a reader away. A job that nobody reads any more is marked as left, and taken out
        of the queue if it waits there at `order`."""
        place, tag, number = order or Order(1, -1, 0)
        reply: int = self._leave(
            keys=[
                names.readers_key(job.id),
                names.cancel_key(job.id),
                names.waiting_key(job.owner),
                names.priority_lists(job.model)[place - 1],
            ],
            args=[channel, job.id, self._ttl_s, tag, number],
        )
        return list(Departure)[reply]

    def outline(self, model: str) -> "Outline":
        """Who waits where in a model's queue. Costs about the same however long the queue is."""
        reply: list[list[int]] = self._outline(keys=names.priority_lists(model))
        return Outline.of(reply)

    def position_of(self, job: Job) -> int:
        """How many messages are before the job's; -1 = it does not wait. Looks the whole queue
        through: for one who asks, not for a loop."""
        reply: int = self._where(keys=names.priority_lists(job.model), args=[job.id])
        return reply

    def forget(self, idempotency_key: str, known: Admission) -> None:
        """Let a key go that was found to be taken, if it still stands for the same job."""
        self._forget(keys=[idempotency_key], args=[f"{known.known_fingerprint} {known.known_id}"])

    # -- the replica's side ------------------------------------------------------------------

    def begin(self, job: Job) -> None:
        """A waiting job runs from now on."""
        self._begin(
            keys=[names.waiting_key(job.owner), names.running_key(job.owner)],
            args=[job.id, job.deadline_at, self._ttl_s],
        )

    def settle(self, job: Job, used_tokens: int) -> None:
        """A job neither waits nor runs any more, and has used so many of its key's tokens."""
        self._settle(
            keys=[
                names.waiting_key(job.owner),
                names.running_key(job.owner),
                names.rates_key(job.owner),
            ],
            args=[job.id, job.charged_tokens - used_tokens],
        )

    def take_turns(self, model: str, interval_s: float) -> int:
        """Let each lower class that has waited for the interval send one job ahead of all.

        Returns how many went. Called now and then by the replicas of a model.
        """
        moved: int = self._turn(
            keys=[names.turns_key(model), *names.priority_lists(model)],
            args=[interval_s],
        )
        return moved


def _script(client: "redis.Redis", *parts: str, first_line: str = essential.FLAGS) -> Any:
    texts = [(_LUA / f"{part}.lua").read_text("utf-8") for part in parts]
    return client.register_script(first_line + "\n".join(texts))


def _allowances(limits: Limits, left: list[int]) -> Allowances:
    def allowance(limit: int, remaining: int, reset_ms: int) -> Allowance | None:
        if not limit:
            return None
        return Allowance(limit=limit, remaining=remaining, reset_s=reset_ms / 1000)

    return Allowances(
        requests=allowance(limits.requests_per_minute, left[0], left[1]),
        tokens=allowance(limits.tokens_per_minute, left[2], left[3]),
    )
