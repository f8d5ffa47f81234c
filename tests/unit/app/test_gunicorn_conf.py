"""What a web process does at its end."""

from types import SimpleNamespace
from typing import Any

import pytest
import redis

from app.metrics import definitions
from app.metrics.store import CounterStore


def test_counts_that_are_lost_at_the_end_are_logged(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from app import gunicorn_conf  # reads the settings

    monkeypatch.setattr(definitions, "STORE", CounterStore("master"))
    services = SimpleNamespace(client=server)
    wsgi = SimpleNamespace(extensions={"llmis": services})
    worker: Any = SimpleNamespace(booted=True, wsgi=wsgi)
    gunicorn_conf.worker_exit(None, worker)
    assert server.hlen("llmis:web:master:reports") == 1
    assert not caplog.records
    server.config_set("maxmemory", 1)
    gunicorn_conf.worker_exit(None, worker)
    assert "are lost" in caplog.text
