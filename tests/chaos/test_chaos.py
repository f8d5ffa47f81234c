"""Load, and each fault once. Alone: `pytest -m chaos`; for minutes: `make chaos`."""

import pytest

from tests.chaos import run
from tests.chaos.faults import FAULTS

_SEED = 1


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_every_request_is_accounted_for_while_everything_dies() -> None:
    report = run.run(
        run.faults_of(len(FAULTS)), _SEED, say=lambda text: print(text, flush=True), num_clients=3
    )
    assert report.problems == []
    assert report.tries["right"] > 0
    assert set(report.faults) == {fault.name for fault in FAULTS}
