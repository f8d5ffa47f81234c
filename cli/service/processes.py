"""The commands of the service's processes, as `llmis up` and all other supervisors start them."""

import sys

from shared.settings import Settings

_MAX_TASKS = 5000
"""Flower keeps so many; its own default takes hundreds of megabytes."""


def web() -> list[str]:
    return [sys.executable, "-m", "gunicorn", "-c", "python:app.gunicorn_conf", "app.wsgi:app"]


def agent() -> list[str]:
    return [sys.executable, "-m", "worker.agent"]


def flower(settings: Settings) -> list[str]:
    return [
        *(sys.executable, "-m", "celery", "-A", "shared.celery_app", "flower"),
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        f"--max-tasks={_MAX_TASKS}",
    ]
