"""Runs one job: checks that it is still wanted, makes its sequences, waits for its end. Runs in
task threads, which never touch a token: the engine loop and the publisher do the work."""

import logging
import time
from typing import Any

import msgspec

from shared import errors, logs, names
from shared.clock import clock
from shared.errors import LlmisError
from shared.redis.connection import payload_bytes
from shared.redis.retry import retry_forever
from shared.wire.events import FinishReason
from shared.wire.job import JobKind
from worker.replica import leasing, poison
from worker.replica.attempt import (
    Attempt,
    JobDropped,
    JobEnded,
    JobPreempted,
    Preemption,
    num_prompt_tokens,
    parsers_of,
)
from worker.replica.context import ReplicaContext
from worker.replica.leasing import LeasedJob, NotRun
from worker.replica.resume import resume
from worker.sequence import StepResult
from worker.text.completion import detokenize

_log = logging.getLogger(__name__)


def run(replica: ReplicaContext, job_id: str) -> str:
    """Run a job and return its outcome. If the process dies, its jobs are recovered."""
    logs.set_request_id(job_id)
    try:
        if not replica.in_flight.begin(job_id):
            _log.info("second delivery of a job dropped")
            return NotRun.DUPLICATE
        try:
            leased = leasing.take(replica, job_id)
            if isinstance(leased, NotRun):
                return leased
            attempt = _run(replica, leased)
            has_reader = leasing.leave(replica, leased, attempt)
        finally:
            replica.in_flight.end(job_id)
        if has_reader:  # queued only now: this replica may be the one that takes the job
            leasing.requeue(replica, attempt.job)
        return attempt.outcome
    finally:
        logs.set_request_id("")


def stop(replica: ReplicaContext, job_id: str, flag: bytes) -> None:
    """Stop a job of this replica for a cancel flag, see `names.cancel_key`. For any thread."""
    replica.in_flight.flag(job_id, flag)
    _stop_in_loop(replica, job_id, flag)


def _stop_in_loop(replica: ReplicaContext, job_id: str, flag: bytes) -> None:
    if flag == names.LEFT:
        replica.loop.preempt(job_id, Preemption.LEFT)
    else:
        replica.loop.cancel(job_id, errors.RequestCancelled())


def _run(replica: ReplicaContext, leased: LeasedJob) -> Attempt:
    """Whatever happens, the log of a leased job gets its last event, or the job is preempted."""
    attempt = Attempt(
        leased.job,
        leased.lease.attempt,
        [],
        lease=leased.lease.encode(),
        channels=leased.readers,
        next_seq=leased.progress.num_events,
    )
    try:
        _start(replica, attempt, leased)
    except LlmisError as error:
        _fail(replica, attempt, error)
    except Exception:  # templates, tokenizers and grammars are foreign code: the job must end
        _log.exception("job failed outside of the engine")
        reason = "The replica had an error while preparing the request."
        _fail(replica, attempt, errors.InternalError(reason))
    else:
        # The lease script has read the flag in Redis. One that was set later is followed by a
        # revocation, which either finds the job in the loop by now or is seen here.
        flag = replica.in_flight.flag_of(attempt.id)
        if flag == names.LEFT:  # a reader that has come back meanwhile has deleted it in Redis
            key = names.cancel_key(attempt.id)
            found = retry_forever(lambda: replica.client.get(key), "a cancel flag")
            flag = None if found is None else payload_bytes(found)
        if flag is not None:
            _stop_in_loop(replica, attempt.id, flag)
    attempt.done.wait()
    _log_end(replica, attempt)
    return attempt


def _start(replica: ReplicaContext, attempt: Attempt, leased: LeasedJob) -> None:
    """Check that the job is wanted and submit it to the engine loop. Raises LlmisError."""
    if not (leased.is_readable and leased.progress.is_readable):
        raise errors.InternalError("The replica cannot read the request. Send it again.")
    if leased.cancel_flag == names.LEFT:
        attempt.outcome = Preemption.LEFT
        replica.publisher.emit([(attempt, JobPreempted(Preemption.LEFT))])
        return
    _check_wanted(replica, leased)
    if attempt.job.kind in (JobKind.TOKENIZE, JobKind.DETOKENIZE, JobKind.TOKENIZER_INFO):
        _translate(replica, attempt)
        return
    attempt.sequences = replica.prompts.sequences(attempt.job)
    _apply_denylist(replica, attempt)
    attempt.parsers = parsers_of(attempt.sequences)
    if attempt.job.echo:
        attempt.echoes = replica.prompts.echoes(attempt.job)
    if leased.progress.num_events:
        _log.warning(
            "job goes on after %d tokens",
            leased.progress.num_tokens,
            extra={"attempt": attempt.number},
        )
        resume(attempt, leased.progress, replica.vocabulary)
    if attempt.sequences and len(attempt.ended) == len(attempt.sequences):
        # An earlier attempt has completed all choices: only the last event is missing.
        attempt.prompt_tokens = num_prompt_tokens(attempt)
        _finish(replica, attempt)
        return
    was_idle = not replica.loop.running()
    replica.loop.submit(attempt)
    if was_idle:
        replica.on_busy()


def _check_wanted(replica: ReplicaContext, leased: LeasedJob) -> None:
    """Raises RequestCancelled, Quarantined, DeadlineExceeded, QueueTimeout."""
    if leased.cancel_flag is not None:
        raise errors.RequestCancelled
    poison.check(leased.lease)
    if _lateness(replica, leased) is not None:
        # The service's clock may have been set back since the last beat.
        retry_forever(lambda: clock.measure(replica.client), "the clock")
        error = _lateness(replica, leased)
        if error is not None:
            raise error


def _lateness(replica: ReplicaContext, leased: LeasedJob) -> LlmisError | None:
    """Why a job has waited for too long, if it has."""
    job, waited_s = leased.job, clock.age_s(leased.job.created_at)
    if clock.is_past(job.deadline_at, made_at=job.created_at):
        return errors.DeadlineExceeded("The request waited in the queue until its deadline.")
    if 0 < replica.max_queue_s < waited_s and not leased.progress.num_events:
        return errors.QueueTimeout(
            f"The request waited in the queue for {waited_s:.0f} s, which is too long."
        )
    return None


def _apply_denylist(replica: ReplicaContext, attempt: Attempt) -> None:
    """Set the output rules. Raises ContentFiltered: the web tier has checked prompts that are
    texts; the text of token ids is known only here."""
    if replica.denylist is None:
        return
    denylist, job = replica.denylist.current, attempt.job
    on_prompts = denylist.on_prompts(job.model)
    if on_prompts is not None and on_prompts.refuse is not None:
        for prompt in job.prompts:
            if isinstance(prompt, list):
                rules = on_prompts.refuse.rules_in(detokenize(replica.vocabulary, prompt))
                if rules:
                    raise errors.ContentFiltered.by(rules[0].name, "prompt")
    attempt.rules = denylist.on_output(job.model)
    for sequence in attempt.sequences:
        sequence.rules = attempt.rules


def _translate(replica: ReplicaContext, attempt: Attempt) -> None:
    """Answer a job that only needs the vocabulary, without the engine loop. Raises LlmisError."""
    job, key = attempt.job, (attempt.id, 0)
    attempt.started_at = time.monotonic()
    attempt.queue_s = clock.age_s(job.created_at)
    if job.kind is JobKind.TOKENIZE:
        token_ids = replica.prompts.tokens(job)
        # The texts of the single tokens travel as the JSON that their reader passes on.
        texts = replica.prompts.token_texts(token_ids) if job.token_texts else None
        text = msgspec.json.encode(texts).decode()
        result = StepResult(key, text, token_ids, FinishReason.STOP)
    elif job.kind is JobKind.TOKENIZER_INFO:
        text = msgspec.json.encode(_tokenizer_info(replica)).decode()
        result = StepResult(key, text, finish_reason=FinishReason.STOP)
    else:
        result = StepResult(key, replica.prompts.text(job), finish_reason=FinishReason.STOP)
    _finish(replica, attempt, result)


def _tokenizer_info(replica: ReplicaContext) -> dict[str, Any]:
    """Of the answer of `GET /tokenizer_info`, what the replica alone knows."""
    vocabulary = replica.vocabulary
    return {
        "bos_token": vocabulary.bos_text or None,
        "eos_token": vocabulary.eos_text or None,
        "add_bos_token": vocabulary.adds_bos,
        "chat_template": replica.prompts.template_source,
    }


def _finish(replica: ReplicaContext, attempt: Attempt, *results: StepResult) -> None:
    attempt.outcome = "finished"
    end = JobEnded(attempt.usage(), attempt.timings())
    replica.publisher.emit([*((attempt, result) for result in results), (attempt, end)])


def _fail(replica: ReplicaContext, attempt: Attempt, error: LlmisError) -> None:
    attempt.outcome = error.code or error.type
    replica.publisher.emit([(attempt, JobDropped(error))])


def _log_end(replica: ReplicaContext, attempt: Attempt) -> None:
    usage, timings = attempt.usage(), attempt.timings()
    level = logging.ERROR if attempt.outcome == errors.EngineError.code else logging.INFO
    _log.log(
        level,
        "request done",
        extra={
            "request_id": attempt.id,
            "model": attempt.job.model,
            "replica": replica.id,
            "attempt": attempt.number,
            "outcome": attempt.outcome,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_time_ms": round(1000 * timings.queue_s, 1),
            "prefill_ms": round(1000 * timings.prefill_s, 1),
            "decode_ms": round(1000 * timings.decode_s, 1),
            "slot_ms": round(1000 * (timings.prefill_s + timings.decode_s), 1),
        },
    )
