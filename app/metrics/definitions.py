"""The web tier's metrics, as docs/metrics.md lists them: vLLM's names and units with the prefix
`llmis_`.

Each process counts what it answers, and the processes of a master add it up in `app.metrics.store`.
What replicas and agents report is in `app.metrics.service_state`. No label has a value that a
client chooses freely.
"""

from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from app.metrics import store

STORE = store.install()
"""What all metrics below are kept in: before the first of them is made."""
_MODEL = ("model",)
_LATENCY_MS = (1, 2.5, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 250, 500, 750)
_SLOW_S = (1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LATENCY_S = tuple(ms / 1000 for ms in _LATENCY_MS) + _SLOW_S
_GAP_MS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)
_LONG_GAP_S = (0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_GAP_S = tuple(ms / 1000 for ms in _GAP_MS) + _LONG_GAP_S
_TOKENS = [digit * 10**zeros for zeros in range(7) for digit in (1, 2, 5)][:-2]
"""1, 2, 5, 10, … 1,000,000."""
_latency = partial(Histogram, labelnames=_MODEL, buckets=_LATENCY_S)
_tokens = partial(Histogram, labelnames=_MODEL, buckets=_TOKENS)

REQUESTS = Counter("llmis_requests", "Ended requests.", ("model", "outcome", "finish_reason"))
FAILURES = Counter(
    "llmis_failures", "Requests that failed after they became a job.", ("model", "reason")
)
REJECTIONS = Counter("llmis_rejections", "Requests that never became a job.", ("model", "reason"))
RATE_LIMIT_HITS = Counter(
    "llmis_rate_limit_hits", "Requests refused for a limit of their key.", ("limit",)
)
AUTH_FAILURES = Counter("llmis_auth_failures", "Requests without a valid key.", ("reason",))
FILTER_MATCHES = Counter(
    "llmis_filter_matches", "Matches of the denylist.", ("model", "action", "where")
)
CANCELLATIONS = Counter(
    "llmis_cancellations", "Requests that their client left or cancelled.", ("model", "stage")
)
FAILOVERS = Counter("llmis_failovers", "Jobs resumed in another attempt.", _MODEL)
RESUMES = Counter("llmis_resumes", "Clients that resumed a request.", _MODEL)

TIME_TO_FIRST_TOKEN = _latency(
    "llmis_time_to_first_token_seconds", "Request received to first tokens delivered to the reader."
)
INTER_TOKEN_LATENCY = Histogram(
    "llmis_inter_token_latency_seconds",
    "Gap between deliveries of tokens, divided by the number of tokens in the later one.",
    _MODEL,
    buckets=_GAP_S,
)
QUEUE_TIME = _latency("llmis_request_queue_time_seconds", "Enqueued to admitted by the engine.")
PREFILL_TIME = _latency(
    "llmis_request_prefill_time_seconds", "Admitted by the engine to first token."
)
DECODE_TIME = _latency("llmis_request_decode_time_seconds", "First token to last token.")
E2E_LATENCY = _latency(
    "llmis_e2e_request_latency_seconds", "Request received to its end, of finished requests."
)
STREAM_LAG = _latency(
    "llmis_stream_lag_seconds", "Published by the replica to written to the client's socket."
)
REQUEST_PROMPT_TOKENS = _tokens("llmis_request_prompt_tokens", "Prompt tokens per request.")
REQUEST_GENERATION_TOKENS = _tokens(
    "llmis_request_generation_tokens", "Generated tokens per request."
)
PROMPT_TOKENS = Counter("llmis_prompt_tokens", "Prompt tokens of finished requests.", _MODEL)
CACHED_TOKENS = Counter(
    "llmis_prompt_tokens_cached", "Prompt tokens taken from the KV cache.", _MODEL
)
GENERATION_TOKENS = Counter("llmis_generation_tokens", "Tokens relayed to clients.", _MODEL)
STREAMS = Gauge("llmis_streams", "Open streams of the web tier.")
