"""Counts requests that have ended, as docs/metrics.md has it. What is measured while they run,
`app.request_facts` adds itself."""

from app import metrics
from app.meters import meters_of
from app.request_facts import Outcome, RequestFacts
from shared.errors import ContentFiltered
from shared.messages import JobKind


def count(facts: RequestFacts) -> None:
    """Count a request, unless its job was there before."""
    if not facts.is_counted:
        return
    outcome, model = facts.outcome, facts.model
    word = facts.finish_reasons.get(0, "") if outcome is Outcome.FINISHED else ""
    metrics.REQUESTS.labels(model, outcome, word).inc()
    if outcome is Outcome.FINISHED:
        _add_work(facts)
    elif outcome is Outcome.REJECTED:
        metrics.REJECTIONS.labels(model, facts.reason).inc()
    elif outcome is Outcome.FAILED:
        metrics.FAILURES.labels(model, facts.reason).inc()
        if isinstance(facts.error, ContentFiltered):
            metrics.FILTER_MATCHES.labels(model, "refuse", "prompt").inc()
    else:
        metrics.CANCELLATIONS.labels(model, facts.stage).inc()


def _add_work(facts: RequestFacts) -> None:
    """What a finished request has cost. Tokenizing never reaches the engine."""
    finished = facts.finished
    if finished is None or not (facts.generates or facts.kind is JobKind.EMBEDDING):
        return
    meters, timings, usage = meters_of(facts.model), finished.timings, finished.usage
    meters.e2e_latency.observe(facts.total_s)
    meters.queue_time.observe(timings.queue_s)
    meters.prefill_time.observe(timings.prefill_s)
    meters.request_prompt_tokens.observe(usage.prompt_tokens)
    meters.prompt_tokens.inc(usage.prompt_tokens)
    meters.cached_tokens.inc(usage.cached_tokens)
    if facts.generates:
        meters.decode_time.observe(timings.decode_s)
        meters.request_generation_tokens.observe(usage.completion_tokens)
