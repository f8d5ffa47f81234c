"""Gaps of running streams while a long prompt is read."""

import pytest

from bench import prefill
from tests.unit.bench.results import result, stream

_RUNNING = stream(0.0, 1.0, 1.1, 1.2, 1.3, 1.8, 2.3, 4.3, 4.4, 4.5)
"""A gap of 0.1 s; from 1.25 to 4.2 s a prompt is read."""
_LATE = stream(1.25, 4.2, 4.3, prompt_tokens=4000)


def test_gaps_before_and_while_the_prompt_is_read() -> None:
    found = prefill.prefill_numbers(result(_RUNNING, late=_LATE))
    assert found.before_p50_ms == pytest.approx(100)
    assert found.p50_ms == pytest.approx(500), "of 0.1, 0.5, 0.5 and 2.0 s"
    assert found.longest_ms == found.p99_ms == pytest.approx(2000), "it ends after the first token"
    assert found.p99_over_median == pytest.approx(4)
    assert found.p99_over_before == pytest.approx(20)
    assert found.ttft_ms == pytest.approx(2950)
    assert found.prompt_tokens == 4000


def test_streams_that_had_ended_tell_nothing() -> None:
    with pytest.raises(RuntimeError, match="no stream ran"):
        prefill.prefill_numbers(result(stream(0.0, 1.0, 1.1), late=_LATE))


def test_a_server_that_stalled_is_named() -> None:
    found = prefill.prefill_numbers(result(_RUNNING, late=_LATE))
    results = prefill.medians({"llmis": [found, None, found], "llama.cpp": [None, None, None]})
    assert results == {"llmis": found, "llama.cpp": None}
    ours, theirs = prefill.prefill_table(results).splitlines()[1:]
    assert ours.split() == [
        *("llmis", "100.0", "500.0", "2,000.0", "2,000.0", "4.0", "20.0", "2,950", "4,000")
    ]
    assert theirs.split() == ["llama.cpp", "stalled"]
