"""Logs of a running service stay small."""

import json
from pathlib import Path

from tests.conftest import running_service, wait_for
from tests.support.admin_client import Completion
from tests.support.counter_model import expected_text

_BYTES = 20_000


def test_the_logs_of_every_process_are_rotated(tmp_path: Path) -> None:
    extra = f'log_level = "debug"\nlog_max_bytes = {_BYTES}\nlog_files_kept = 2'
    with running_service(tmp_path, extra=extra) as service:
        logs = tmp_path / "logs"

        def has_rotated() -> bool:
            assert Completion(service, "counter", 5).read().text == expected_text(5, 5)
            names = ("web", "replica-counter")
            return all((logs / f"{name}.log.2").exists() for name in names)

        wait_for(has_rotated, "both logs have two copies", 60)
        request = Completion(service, "counter", 5).read()
        request_id = request.response.headers["x-request-id"]
    # Nothing is rotated any more.
    assert any(request_id in path.read_text() for path in logs.glob("web.log*"))
    for path in logs.glob("*.log.*"):
        assert path.suffix in (".1", ".2")
        for line in path.read_text().splitlines():
            assert not line.startswith("{") or json.loads(line)["message"]
