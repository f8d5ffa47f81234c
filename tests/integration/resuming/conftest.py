"""The service that readers leave and come back to."""

from collections.abc import Iterator

import pytest

from tests.conftest import Service, running_service

_LONG = """
web_workers = 2
web_drain_s = 1

[[models]]
name = "long"
path = "counter.gguf"
context_length = 16384
slots = 2
strip_leading_space = true
"""


@pytest.fixture(scope="package")
def webs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two web processes, and a model whose answers take seconds."""
    soon = {"LLMIS_ORPHAN_GRACE_S": "0.2", "LLMIS_DRAIN_GRACE_S": "0.5"}
    with running_service(tmp_path_factory.mktemp("resume"), extra=_LONG, environ=soon) as running:
        yield running
