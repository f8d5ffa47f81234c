"""The web tier's metrics, as docs/metrics.md lists them: vLLM's names and units with the prefix
`llmis_`.

They are counted where they are answered, in files that the web processes of a host share. What
the replicas and agents say of themselves is in `app.state_metrics`. No label carries what a
client may choose freely.
"""

from prometheus_client import Counter, Gauge, Histogram

from app import counter_files

counter_files.install()
_MODEL = ("model",)
_LATENCY_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5),
    *(0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_GAP_S = (
    *(0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02),
    *(0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_TOKENS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000),
    *(200_000, 500_000, 1_000_000),
)

REQUESTS = Counter(
    "llmis_requests",
    "Ended requests.",
    ("model", "outcome", "finish_reason"),
)
FAILURES = Counter(
    "llmis_failures", "Requests that failed after they became a job.", ("model", "reason")
)
REJECTIONS = Counter("llmis_rejections", "Requests that never became a job.", ("model", "reason"))
RATE_LIMIT_HITS = Counter("llmis_rate_limit_hits", "Refusals for a limit of a key.", ("limit",))
AUTH_FAILURES = Counter("llmis_auth_failures", "Requests without a valid key.", ("reason",))
FILTER_MATCHES = Counter(
    "llmis_filter_matches", "Matches of the denylist.", ("model", "action", "where")
)
CANCELLATIONS = Counter(
    "llmis_cancellations", "Requests that were left or cancelled.", ("model", "stage")
)
FAILOVERS = Counter("llmis_failovers", "Times that a job went on in another attempt.", _MODEL)
RESUMES = Counter("llmis_resumes", "Clients that came back to a request.", _MODEL)

TIME_TO_FIRST_TOKEN = Histogram(
    "llmis_time_to_first_token_seconds",
    "Request received to first tokens that the reader got.",
    _MODEL,
    buckets=_LATENCY_S,
)
INTER_TOKEN_LATENCY = Histogram(
    "llmis_inter_token_latency_seconds",
    "Gap between tokens that came, divided by the number of the later ones.",
    _MODEL,
    buckets=_GAP_S,
)
QUEUE_TIME = Histogram(
    "llmis_request_queue_time_seconds",
    "Enqueued to admitted by the engine.",
    _MODEL,
    buckets=_LATENCY_S,
)
PREFILL_TIME = Histogram(
    "llmis_request_prefill_time_seconds",
    "Admitted by the engine to first token.",
    _MODEL,
    buckets=_LATENCY_S,
)
DECODE_TIME = Histogram(
    "llmis_request_decode_time_seconds",
    "First token to last token.",
    _MODEL,
    buckets=_LATENCY_S,
)
E2E_LATENCY = Histogram(
    "llmis_e2e_request_latency_seconds",
    "Request received to its end, of finished requests.",
    _MODEL,
    buckets=_LATENCY_S,
)
STREAM_LAG = Histogram(
    "llmis_stream_lag_seconds",
    "Published by the replica to handed to the client's socket.",
    _MODEL,
    buckets=_LATENCY_S,
)
REQUEST_PROMPT_TOKENS = Histogram(
    "llmis_request_prompt_tokens", "Prompt tokens a request.", _MODEL, buckets=_TOKENS
)
REQUEST_GENERATION_TOKENS = Histogram(
    "llmis_request_generation_tokens", "Generated tokens a request.", _MODEL, buckets=_TOKENS
)
PROMPT_TOKENS = Counter("llmis_prompt_tokens", "Prompt tokens of finished requests.", _MODEL)
CACHED_TOKENS = Counter(
    "llmis_prompt_tokens_cached", "Prompt tokens taken from the KV cache.", _MODEL
)
GENERATION_TOKENS = Counter("llmis_generation_tokens", "Tokens relayed to clients.", _MODEL)
STREAMS = Gauge("llmis_streams", "Open streams of the web tier.", multiprocess_mode="livesum")
