"""The command lines of the service's processes, for `llmis up` and other supervisors."""

import sys

from shared.settings.fields import Settings

_MAX_TASKS = 5000
"""Tasks that Flower keeps. Its own default takes hundreds of megabytes."""
_PURGE_S = 60
"""Flower drops a worker that is gone for so long from its list and metrics: each process of a
replica is a worker of its own. By default it keeps them all."""


def web() -> list[str]:
    return [sys.executable, "-m", "gunicorn", "-c", "python:app.gunicorn_conf", "app.wsgi:app"]


def agent() -> list[str]:
    return [sys.executable, "-m", "worker.agent"]


def flower(settings: Settings) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", "shared.celery_app"]
    return [
        *celery,
        "flower",
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        f"--max-tasks={_MAX_TASKS}",
        f"--purge-offline-workers={_PURGE_S}",
    ]
