"""Two minutes of load and faults. Alone: `pytest -m chaos`; longer: `make chaos`."""

import pytest

from tests.chaos import run

_SECONDS = 120.0
_SEED = 1


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_every_request_is_accounted_for_while_everything_dies() -> None:
    report = run.run(_SECONDS, _SEED, say=lambda text: print(text, flush=True), num_clients=6)
    assert report.problems == []
    assert report.tries["right"] > 0
    assert report.faults
