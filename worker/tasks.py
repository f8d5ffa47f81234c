"""The Celery side of a replica: the generate task and what a revocation does to it.

A task thread decodes its job, checks that it is still wanted, prepares the prompt, hands it to
the engine loop and waits. It never touches a token.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis
from celery.exceptions import Ignore
from celery.worker import state as worker_state
from celery.worker.control import control_command, ok
from celery.worker.request import Request

from shared import claims, essential, logs, messages, names, registry
from shared.celery_app import app
from shared.claims import Claim
from shared.connections import payload_bytes
from shared.denylist_file import DenylistFile
from shared.errors import (
    ContentFiltered,
    DeadlineExceeded,
    EngineError,
    InternalError,
    LlmisError,
    Quarantined,
    QueueTimeout,
    RequestCancelled,
)
from shared.job_queue import JobQueue, Rescue
from shared.messages import Event, FinishReason, Job, JobKind
from shared.outages import outlast
from worker.at_work import AtWork
from worker.engine_loop import EngineLoop
from worker.engines.protocol import StepResult, Vocabulary, detokenize
from worker.handover import Past, go_on, past_of
from worker.job_run import (
    GiveBack,
    JobDropped,
    JobEnded,
    JobGivenBack,
    JobRun,
    num_prompt_tokens,
)
from worker.prompt import PromptBuilder
from worker.publisher import Publisher

_log = logging.getLogger(__name__)

_MAX_BARREN = 2
"""Replicas that may die over a job in a row without a token from any of them."""
CANCELLED = "The request was cancelled."


@dataclass(frozen=True, slots=True)
class Replica:
    """The parts of this process that tasks use."""

    id: str
    client: "redis.Redis"
    loop: EngineLoop
    publisher: Publisher
    prompts: PromptBuilder
    vocabulary: Vocabulary
    on_busy: Callable[[], None]
    """Called when the first job comes after a pause: who looks for an idle replica must know."""
    queue: JobQueue
    job_ttl_s: int
    """How long what belongs to a job stays in Redis when it has ended, or waits for a reader."""
    running_ttl_s: int
    """The same while it may run."""
    max_queue_s: float
    """How long after its arrival a job may begin; 0 = up to its deadline."""
    is_draining: Callable[[], bool]
    """Whether jobs that come now are for other replicas."""
    denylist: DenylistFile | None = None
    at_work: AtWork = field(default_factory=AtWork)


_replica: Replica | None = None


def serve(replica: Replica) -> None:
    """Make the tasks of this process run on `replica`."""
    global _replica
    _replica = replica


class GenerateRequest(Request):  # type: ignore[misc]
    """A generate task as the worker sees it: terminating it cancels the job in the engine."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if _replica is None:
            return
        if signal == names.LEFT.decode():
            _replica.loop.give_back(self.id, GiveBack.LEFT)
        else:
            _replica.loop.cancel(self.id, RequestCancelled(CANCELLED))

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        self.terminate(pool, signal)


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def revoke(state: Any, task_id: Any, signal: Any = None, **_: Any) -> Any:
    """Replace Celery's command: cancel the jobs, here or when they are popped.

    Celery's own would drop a queued task in silence, and its reader would wait for ever; and it
    asks a result backend about every task that it does not know. Here a queued job gets the
    cancel flag, and the replica that pops it writes the end into its log. The signal `left`
    comes from the web tier, which has set its own flag: nobody reads the job any more.
    """
    task_ids = {task_id} if isinstance(task_id, str) else set(task_id)
    for request in [r for r in list(worker_state.reserved_requests) if r.id in task_ids]:
        request.terminate(state.consumer.pool, signal=signal)
    if _replica is not None and signal != names.LEFT.decode():
        for job_id in task_ids:
            claims.flag_cancelled(_replica.client, job_id, _replica.running_ttl_s)
    return ok(f"cancelled: {sorted(task_ids)}")


@app.task(bind=True, name=names.GENERATE_TASK, Request=f"{__name__}:GenerateRequest")  # type: ignore[untyped-decorator]
def generate(self: Any, job_id: str) -> None:
    """Run one job to its end."""
    assert _replica is not None, "serve() comes before the worker starts"
    if _run(_replica, job_id) in (RequestCancelled.code, GiveBack.LEFT):
        # For Flower: not a success.
        self.send_event("task-revoked", terminated=True, signum="CANCEL", expired=False)
        raise Ignore()


def _run(replica: Replica, job_id: str) -> str:
    """Run a job and return its outcome. Should the process die, what it holds is rescued."""
    logs.set_request_id(job_id)
    try:
        if not replica.at_work.begin(job_id):
            _log.info("second delivery of a job dropped")
            return "duplicate"
        try:
            return _run_once(replica, job_id)
        finally:
            replica.at_work.end(job_id)
    finally:
        logs.set_request_id("")


def _run_once(replica: Replica, job_id: str) -> str:
    """An outage of Redis is outlasted: the message is acknowledged when this returns, and nobody
    would send it again."""
    payload, readers = outlast(lambda: _take(replica, job_id), "a job")
    if not payload:
        _log.warning("job is gone, nobody waits for it")
        outcome = "expired"
    else:
        try:
            job = messages.decode_job(payload_bytes(payload))
        except messages.DecodeError:
            outcome = _refuse(replica, job_id, readers)
        else:
            if replica.is_draining():
                outlast(lambda: replica.queue.rescue(job, replica.id), "a job's return")
                return GiveBack.HANDED_OVER
            outcome = _run_job(replica, job, readers)
    outlast(lambda: replica.client.srem(names.held_key(replica.id), job_id), "a job's end")
    return outcome


def _refuse(replica: Replica, job_id: str, readers: set[bytes]) -> str:
    """End a job that this process cannot read: of another version, or damaged."""
    _log.error("job is not readable: it ends", exc_info=True)
    num_events = outlast(lambda: replica.client.llen(names.log_key(job_id)), "a job's log")
    job = Job(id=job_id, model="", kind=JobKind.COMPLETION, created_at=0.0, deadline_at=0.0)
    run = JobRun(job, 0, [], next_seq=num_events, channels=_channels(readers))
    _fail(replica, run, InternalError("The replica cannot read the request. Send it again."))
    run.done.wait()
    return run.outcome


def _run_job(replica: Replica, job: Job, readers: set[bytes]) -> str:
    """Whatever happens, a claimed job gets its last event, or is given back."""
    if job.is_over:
        outlast(lambda: replica.queue.settle(job, job.charged_tokens), "a second delivery")
        return "duplicate"
    claimed = outlast(lambda: _claim(replica, job), "a claim")
    if claimed is None:
        _log.info("second delivery of a job dropped")
        outlast(lambda: _count_once(replica, job), "a second delivery")
        return "duplicate"
    claim, past = claimed
    run = JobRun(job, claim.attempt, [], claim=claim.encode(), next_seq=past.num_events)
    run.channels = _channels(readers)
    try:
        outlast(lambda: replica.queue.begin(job), "a job's begin")
        _start(replica, run, claim, past)
    except LlmisError as error:
        _fail(replica, run, error)
    except Exception:
        _log.exception("job failed outside of the engine")
        _fail(replica, run, InternalError("The replica had an error while preparing the request."))
    else:
        # The flag is set before the revocation is sent: one of the two is seen.
        flag = _cancel_flag(replica, run)
        if flag == names.LEFT:
            replica.loop.give_back(run.id, GiveBack.LEFT)
        elif flag is not None:
            replica.loop.cancel(run.id, RequestCancelled(CANCELLED))
    run.done.wait()
    _log_end(replica, run)
    if run.is_fenced:
        return "taken_over"
    outlast(lambda: _settle(replica, run), "a job's end")
    return run.outcome


def _channels(readers: set[bytes]) -> tuple[str, ...]:
    return tuple(sorted(payload_bytes(reader).decode() for reader in readers))


def _take(replica: Replica, job_id: str) -> Any:
    """Note that this replica has the job; return it encoded, and the channels of its readers."""
    held_key = names.held_key(replica.id)
    pipe = replica.client.pipeline(transaction=False)
    essential.write(pipe, "SADD", names.HOLDERS, replica.id)
    essential.write(pipe, "SADD", held_key, job_id)
    pipe.expire(held_key, replica.running_ttl_s)
    pipe.get(names.job_key(job_id))
    pipe.smembers(names.readers_key(job_id))
    return pipe.execute()[-2:]


def _count_once(replica: Replica, job: Job) -> None:
    """The delivery that was dropped had made the job a waiting one again: it runs, or has ended."""
    if past_of(_log_of(replica, job)).is_ended:
        replica.queue.settle(job, job.charged_tokens)
        return
    replica.queue.begin(job)
    claim = claims.read(replica.client, job.id)
    if claim is not None and claim.holder:
        # Who was taken for dead may have lost it: should it die, its jobs are looked for there.
        pipe = replica.client.pipeline(transaction=False)
        essential.write(pipe, "SADD", names.HOLDERS, claim.holder)
        essential.write(pipe, "SADD", names.held_key(claim.holder), job.id)
        pipe.expire(names.held_key(claim.holder), replica.running_ttl_s)
        pipe.execute()


def _settle(replica: Replica, run: JobRun) -> None:
    """The job is out of the engine, and what there is to say of it is in its log."""
    client, job = replica.client, run.job
    if run.outcome == GiveBack.HANDED_OVER:
        claims.give_back(client, job.id, run.claim, replica.running_ttl_s)
        if replica.queue.rescue(job, replica.id) in (Rescue.QUEUED, Rescue.TAKEN):
            return
        run.outcome = GiveBack.LEFT  # its last reader has gone meanwhile
    if run.outcome == GiveBack.LEFT:
        # What it has used is settled when it ends; until then its charge stands.
        replica.queue.settle(job, job.charged_tokens)
        claims.give_back(client, job.id, run.claim, replica.job_ttl_s)
        client.expire(names.log_key(job.id), replica.job_ttl_s)
        client.expire(names.job_key(job.id), replica.job_ttl_s)
        if client.exists(names.readers_key(job.id)):
            replica.queue.requeue(job)  # somebody has come back meanwhile
    else:
        replica.queue.settle(job, run.prompt_tokens + run.completion_tokens)
        # The request itself is not needed any more; its answer may be read again.
        ended = messages.encode_job(messages.without_request(job))
        key = names.job_key(job.id)
        essential.write(client, "SET", key, ended, "XX", "EX", replica.job_ttl_s)


def _start(replica: Replica, run: JobRun, claim: Claim, past: Past) -> None:
    """Check that the job is wanted and hand it to the engine loop. Raises LlmisError."""
    if _is_stopped(replica, run):
        return
    if claim.num_barren >= _MAX_BARREN:
        raise Quarantined(
            f"{claim.num_barren} replicas have died while they worked on this request. It is not "
            "run again."
        )
    if time.time() > run.job.deadline_at:
        raise DeadlineExceeded("The request waited in the queue until its deadline.")
    waited_s = time.time() - run.job.created_at
    if 0 < replica.max_queue_s < waited_s and not past.num_events:
        raise QueueTimeout(
            f"The request waited in the queue for {waited_s:.0f} s, which is too long."
        )
    if run.job.kind in (JobKind.TOKENIZE, JobKind.DETOKENIZE):
        _translate(replica, run)
        return
    run.sequences = replica.prompts.sequences(run.job)
    _apply_denylist(replica, run)
    run.parsers = replica.prompts.parsers(run.job, run.sequences)
    if run.job.echo:
        run.echoes = replica.prompts.echoes(run.job)
    if past.num_events:
        _log.warning(
            "job goes on after %d tokens",
            past.num_tokens,
            extra={"attempt": claim.attempt},
        )
        go_on(run, past, replica.vocabulary)
    if run.sequences and len(run.ended) == len(run.sequences):
        _end(replica, run)
        return
    was_idle = not replica.loop.running()
    replica.loop.submit(run)
    if was_idle:
        replica.on_busy()


def _apply_denylist(replica: Replica, run: JobRun) -> None:
    """Raises ContentFiltered. The web tier looks at prompts that are texts; of token ids the
    text is known here alone."""
    if replica.denylist is None:
        return
    denylist, job = replica.denylist.current, run.job
    on_prompts = denylist.on_prompts(job.model)
    if on_prompts is not None and on_prompts.refuse is not None:
        for prompt in job.prompts:
            if isinstance(prompt, list):
                rules = on_prompts.refuse.rules_in(detokenize(replica.vocabulary, prompt))
                if rules:
                    raise ContentFiltered.by(rules[0].name, "prompt")
    run.rules = denylist.on_output(job.model)
    for sequence in run.sequences:
        sequence.rules = run.rules


def _is_stopped(replica: Replica, run: JobRun) -> bool:
    """Give a job back that nobody reads. Raises RequestCancelled."""
    flag = _cancel_flag(replica, run)
    if flag == names.LEFT:
        run.outcome = GiveBack.LEFT
        replica.publisher.emit([(run, JobGivenBack(GiveBack.LEFT))])
        return True
    if flag is not None:
        raise RequestCancelled(CANCELLED)
    return False


def _cancel_flag(replica: Replica, run: JobRun) -> Any:
    return outlast(lambda: replica.client.get(names.cancel_key(run.id)), "a cancel flag")


def _translate(replica: Replica, run: JobRun) -> None:
    """Answer a job that needs the vocabulary alone, past the engine loop. Raises LlmisError."""
    job, key = run.job, (run.id, 0)
    run.started_at = time.monotonic()
    run.queue_s = max(0.0, time.time() - job.created_at)
    if job.kind is JobKind.TOKENIZE:
        token_ids = replica.prompts.tokens(job)
        # The texts of the single tokens travel as the JSON that their reader passes on.
        texts = replica.prompts.token_texts(token_ids) if job.token_texts else None
        text = msgspec.json.encode(texts).decode()
        result = StepResult(key, text, token_ids, FinishReason.STOP)
    else:
        result = StepResult(key, replica.prompts.text(job), finish_reason=FinishReason.STOP)
    run.outcome = "finished"
    replica.publisher.emit([(run, result), (run, JobEnded(run.usage(), run.timings()))])


def _end(replica: Replica, run: JobRun) -> None:
    """All choices were complete when the replica before this one died; only the end is missing."""
    run.prompt_tokens = num_prompt_tokens(run)
    run.outcome = "finished"
    replica.publisher.emit([(run, JobEnded(run.usage(), run.timings()))])


def _claim(replica: Replica, job: Job) -> tuple[Claim, Past] | None:
    """Take the job for this replica, and read what is in its log; None when a live replica has
    it, or had it to its end.

    A claim of our own, while no thread here has the job in hand, is one whose answer was lost.
    """
    mine = Claim(replica.id)
    if claims.take(replica.client, job.id, mine, replica.running_ttl_s):
        # There is a log where Redis has lost the claim.
        past = past_of(_log_of(replica, job))
        return None if past.is_ended else (mine, past)
    found = claims.read(replica.client, job.id)
    if found is None:
        return None
    if found.holder and found.holder != replica.id and _is_alive(replica, found.holder):
        return None
    past = past_of(_log_of(replica, job))
    if past.is_ended:
        return None
    if found.holder == replica.id:
        return found, past
    mine = found.succeeded_by(replica.id, past.num_events, past.num_tokens)
    if not claims.take_over(replica.client, job.id, found, mine, replica.running_ttl_s):
        return None
    # From now on nobody else appends: what has come in between counts, too.
    return mine, past_of(_log_of(replica, job))


def _log_of(replica: Replica, job: Job) -> list[Event]:
    payloads = replica.client.lrange(names.log_key(job.id), 0, -1)
    return [messages.decode_event(payload_bytes(payload)) for payload in payloads]


def _is_alive(replica: Replica, replica_id: str) -> bool:
    """Whether a replica beats. After an outage of Redis all records are gone, ours as well: then
    the others get the time to write theirs again."""
    for wait_s in (2 * registry.BEAT_S, 0.0):
        alive = {record.id for record in registry.read(replica.client)}
        if replica_id in alive or replica.id in alive:
            return replica_id in alive
        time.sleep(wait_s)
    return False


def _fail(replica: Replica, run: JobRun, error: LlmisError) -> None:
    run.outcome = error.code or error.type
    replica.publisher.emit([(run, JobDropped(error))])


def _log_end(replica: Replica, run: JobRun) -> None:
    usage, timings = run.usage(), run.timings()
    level = logging.ERROR if run.outcome == EngineError.code else logging.INFO
    _log.log(
        level,
        "request done",
        extra={
            "request_id": run.id,
            "model": run.job.model,
            "replica": replica.id,
            "attempt": run.attempt,
            "outcome": run.outcome,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_time_ms": round(1000 * timings.queue_s, 1),
            "prefill_ms": round(1000 * timings.prefill_s, 1),
            "decode_ms": round(1000 * timings.decode_s, 1),
            "slot_ms": round(1000 * (timings.prefill_s + timings.decode_s), 1),
        },
    )
