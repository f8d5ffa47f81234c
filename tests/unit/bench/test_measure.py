"""From a load to its numbers."""

import msgspec
import pytest

from bench import measure
from bench.measure import quantile
from bench.sse import Stream
from tests.unit.bench.results import numbers, result, stream


def _one_token(_: Stream, text: str) -> float:
    return text.count(" ")


def test_rates_and_cpu_time_are_those_of_all_streams() -> None:
    found = measure.numbers(
        result(stream(10.0, 10.1, 10.2), stream(10.0, 10.3, 12.0)), tokens_of=_one_token
    )
    assert found.tokens_per_s == pytest.approx(2.0)
    assert found.requests_per_s == pytest.approx(1.0)
    assert found.tokens_per_request == pytest.approx(2.0)
    assert found.cpu_s_per_1k == pytest.approx(1000 * 0.8 / 4)
    assert found.cpu_by_role == pytest.approx({"web": 50.0, "replica": 150.0})
    assert found.ttft_p50_ms == pytest.approx(300.0)
    assert found.ttft_last_ms == pytest.approx(300.0)
    assert found.other_cores == pytest.approx((1.0 - 0.8 - 0.1) / 2.0)


def test_cpu_time_of_a_request_is_that_of_its_tokens() -> None:
    found = measure.numbers(result(stream(0.0, 0.1, 0.2), stream(0.0, 0.1, 0.2)), _one_token)
    assert found.cpu_ms_per_request == pytest.approx(400.0)
    assert found.cpu_ms_per_request_of("web") == pytest.approx(100.0)
    assert found.cpu_ms_per_request_of("redis") is None


def test_requests_of_one_token_have_no_gaps() -> None:
    found = measure.numbers(result(stream(0.0, 0.1)), _one_token)
    assert (found.itl_p50_ms, found.itl_token_p99_ms) == (0.0, 0.0)


def test_a_stream_without_text_is_an_error_of_the_benchmark() -> None:
    without = msgspec.structs.replace(stream(0.0, 0.1), chunk_at=[], chunk_texts=[])
    with pytest.raises(RuntimeError, match="a stream of 1 tokens has no text"):
        measure.numbers(result(without), _one_token)


def test_the_last_of_a_burst_is_the_median_over_the_bursts() -> None:
    """Two streams, three bursts: their slowest streams take 0.2, 0.9 and 0.3 s."""
    streams = [
        *(stream(0.0, 0.1), stream(1.0, 1.9), stream(2.0, 2.2)),
        *(stream(0.0, 0.2), stream(1.0, 1.1), stream(2.0, 2.3)),
    ]
    found = measure.numbers(result(*streams), _one_token, num_bursts=3)
    assert found.ttft_last_ms == pytest.approx(300.0)


def test_medians_are_field_by_field_and_role_by_role() -> None:
    rounds = [
        numbers(tokens_per_s=1.0, cpu_by_role={"web": 3.0}),
        numbers(tokens_per_s=9.0, cpu_by_role={"web": 1.0, "ended": 1.0}),
        numbers(tokens_per_s=2.0, cpu_by_role={"web": 2.0}),
    ]
    found = measure.medians(rounds)
    assert found.tokens_per_s == 2.0
    assert found.cpu_by_role == {"web": 2.0, "ended": 0.0}, "a process of one round took 0 s else"


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [([], 0.5, 0.0), ([3.0], 0.99, 3.0), ([1, 2, 3, 4], 0.5, 3), (range(100), 0.99, 99)],
)
def test_quantiles(values: list[float], q: float, expected: float) -> None:
    assert quantile(values, q) == expected
