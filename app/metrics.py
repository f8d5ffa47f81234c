"""The web tier's metrics: vLLM's names and units with the prefix `llmis_`.

A streamed request is measured where its stream ends, not where its headers go out.
"""

import os
import time

from flask import Flask
from prometheus_client import Counter, Gauge, Histogram
from prometheus_flask_exporter import PrometheusMetrics
from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

from app.documented import documented
from app.job_stream import ClientGone
from shared.errors import LlmisError
from shared.messages import Delta, Event, Finished, JobKind, ReplicaRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0,
            2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # fmt: skip
_MODEL = ("model",)

TIME_TO_FIRST_TOKEN = Histogram(
    "llmis_time_to_first_token_seconds",
    "Request received → first content event.",
    _MODEL,
    buckets=_SECONDS,
)
INTER_TOKEN_LATENCY = Histogram(
    "llmis_inter_token_latency_seconds",
    "Gap between content events, divided by the tokens that came with the later one.",
    _MODEL,
    buckets=_SECONDS,
)
E2E_LATENCY = Histogram(
    "llmis_e2e_request_latency_seconds",
    "Request received → its end.",
    _MODEL,
    buckets=_SECONDS,
)
QUEUE_TIME = Histogram(
    "llmis_request_queue_time_seconds", "Enqueued → admitted.", _MODEL, buckets=_SECONDS
)
PROMPT_TOKENS = Counter("llmis_prompt_tokens", "Prompt tokens of finished requests.", _MODEL)
CACHED_TOKENS = Counter(
    "llmis_prompt_tokens_cached", "Prompt tokens taken from the KV cache.", _MODEL
)
GENERATION_TOKENS = Counter("llmis_generation_tokens", "Tokens relayed to clients.", _MODEL)
REQUESTS = Counter("llmis_request_outcome", "Ended requests by outcome.", ("model", "outcome"))
NUM_RUNNING = Gauge(
    "llmis_num_requests_running",
    "Slots in use.",
    _MODEL,
    multiprocess_mode="mostrecent",
)
NUM_WAITING = Gauge(
    "llmis_num_requests_waiting",
    "Requests in the model's queue, and sequences that wait for a slot.",
    _MODEL,
    multiprocess_mode="mostrecent",
)
NUM_REPLICAS = Gauge("llmis_replicas", "Live replicas.", _MODEL, multiprocess_mode="mostrecent")


def register(app: Flask) -> None:
    """Add `/metrics` and the HTTP metrics of prometheus-flask-exporter."""
    shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
    exporter = GunicornInternalPrometheusMetrics if shared else PrometheusMetrics
    exporter(app, path="/metrics", group_by="endpoint", defaults_prefix="llmis")
    view = app.view_functions["prometheus_metrics"]
    view.__doc__ = "Show the service's metrics in Prometheus' text format."
    documented(str, media_type="text/plain")(view)


def set_gauges(records: list[ReplicaRecord], queue_lengths: dict[str, int]) -> None:
    """Show what the registry and the queues say. One value for the whole service."""
    for model, length in queue_lengths.items():
        replicas = [record for record in records if record.model == model]
        waiting = length + sum(record.waiting_sequences for record in replicas)
        NUM_WAITING.labels(model).set(waiting)
        NUM_RUNNING.labels(model).set(sum(record.busy_slots for record in replicas))
        NUM_REPLICAS.labels(model).set(len(replicas))


class StreamMetrics:
    """Measures one request from its events."""

    def __init__(self, model: str, created_at: float, kind: JobKind) -> None:
        self._model = model
        self._generates = kind in (JobKind.CHAT, JobKind.COMPLETION)
        # The request was received this long ago; durations are monotonic from here on.
        self._received_at = time.monotonic() - max(0.0, time.time() - created_at)
        self._last_content_at = 0.0
        self._itl = INTER_TOKEN_LATENCY.labels(model)
        self._tokens = GENERATION_TOKENS.labels(model)

    def observe(self, events: list[Event]) -> None:
        num_tokens = 0
        for event in events:
            if isinstance(event, Delta) and self._generates:
                num_tokens += len(event.token_ids)
            elif isinstance(event, Finished):
                self._finish(event)
        if num_tokens:
            now = time.monotonic()
            if self._last_content_at:
                self._itl.observe((now - self._last_content_at) / num_tokens)
            else:
                TIME_TO_FIRST_TOKEN.labels(self._model).observe(now - self._received_at)
            self._last_content_at = now
            self._tokens.inc(num_tokens)

    def _finish(self, event: Finished) -> None:
        QUEUE_TIME.labels(self._model).observe(event.timings.queue_s)
        PROMPT_TOKENS.labels(self._model).inc(event.usage.prompt_tokens)
        CACHED_TOKENS.labels(self._model).inc(event.usage.cached_tokens)

    def close(self, error: BaseException | None) -> None:
        outcome = "finished"
        if isinstance(error, ClientGone | GeneratorExit):
            outcome = "client_gone"
        elif isinstance(error, LlmisError):
            outcome = error.code or error.type
        elif error is not None:
            outcome = "server_error"
        REQUESTS.labels(self._model, outcome).inc()
        E2E_LATENCY.labels(self._model).observe(time.monotonic() - self._received_at)
