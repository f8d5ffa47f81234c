"""What boards made for vLLM ask Prometheus, in the words of those in `examples/observability` of
its repository. `$model_name` is one model, `$job` and `$instance` are patterns.
"""

_MODEL = 'model_name="$model_name"'
_ANY = 'job=~"$job", model_name=~"$model_name", instance=~"$instance"'
_WITHIN = _ANY + ', le="$ttft_slo"'
_LATENCIES = (
    "e2e_request_latency_seconds",
    "inter_token_latency_seconds",
    "time_per_output_token_seconds",
    "time_to_first_token_seconds",
)
_PHASES = (
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)


def _rate(name: str, labels: str = _MODEL) -> str:
    return f"rate(vllm:{name}{{{labels}}}[$__rate_interval])"


def _quantile(name: str, labels: str = _MODEL) -> str:
    return f"histogram_quantile(0.95, sum by(le) ({_rate(name + '_bucket', labels)}))"


EXAMPLE = [
    *(_quantile(name) for name in _LATENCIES),
    *(f"{_rate(name + '_sum')}\n/\n{_rate(name + '_count')}" for name in _LATENCIES),
    *(_rate(f"{name}_sum") for name in _PHASES),
    _rate("prompt_tokens_total"),
    _rate("generation_tokens_total"),
    f"vllm:num_requests_running{{{_MODEL}}}",
    f"vllm:num_requests_waiting{{{_MODEL}}}",
    f"vllm:kv_cache_usage_perc{{{_MODEL}}}",
    f"vllm:gpu_cache_usage_perc{{{_MODEL}}}",
    f"sum by(le) (increase(vllm:request_prompt_tokens_bucket{{{_MODEL}}}[$__rate_interval]))",
    f"sum by(le) (increase(vllm:request_generation_tokens_bucket{{{_MODEL}}}[$__rate_interval]))",
    f"sum by(finished_reason) (increase(vllm:request_success_total{{{_MODEL}}}[$__rate_interval]))",
]
"""prometheus_grafana/grafana.json"""

OVERVIEW = [
    *(_quantile(name, _ANY) for name in (*_LATENCIES, *_PHASES)),
    *(
        f"sum({_rate(name + '_sum', _ANY)}) / (sum({_rate(name + '_count', _ANY)}) > 0)"
        for name in (*_LATENCIES, *_PHASES)
    ),
    f"sum({_rate('request_success_total', _ANY)})",
    f"sum by (model_name) ({_rate('generation_tokens_total', _ANY)})",
    f"count(vllm:num_requests_running{{{_ANY}}})",
    f"sum(vllm:num_requests_running{{{_ANY}}})",
    f"sum(vllm:num_requests_waiting{{{_ANY}}})",
    f'sum(vllm:num_requests_waiting_by_reason{{{_ANY}, reason="capacity"}})',
    f"max(vllm:kv_cache_usage_perc{{{_ANY}}})",
    f"max by (model_name) (max_over_time(vllm:kv_cache_usage_perc{{{_ANY}}}[$__range]))",
    f"sum({_rate('prefix_cache_hits_total', _ANY)}) / "
    f"(sum({_rate('prefix_cache_queries_total', _ANY)}) > 0)",
    "count by (model_name) (group by (model_name, instance) "
    f"(last_over_time(vllm:num_requests_running{{{_ANY}}}[$__range])))",
    f"sum({_rate('time_to_first_token_seconds_bucket', _WITHIN)}) / "
    f"(sum({_rate('time_to_first_token_seconds_count', _ANY)}) > 0)",
]
"""dashboards/grafana/vllm_overview.json, less what docs/monitoring.md says stays empty"""
