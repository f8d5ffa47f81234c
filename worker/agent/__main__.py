"""The agent process: `python -m worker.agent` makes this host a node of the service.

All it needs is `REDIS_URL`, and the weights in its model folder.
"""

import os
import sys
import time
from typing import Any

import redis
from celery import signals

from shared import logs, names, operations, registry
from shared import settings as settings_module
from shared.celery_app import app
from shared.connections import check_server, connect
from shared.errors import SettingsError
from shared.settings import Settings
from worker.agent import tasks
from worker.agent.agent import Agent

_NUM_OPERATIONS = 128
"""Loads and unloads at the same time, one a model at most: threads that wait, so that no unload
stands behind loads that wait for the room it would make."""


def main() -> int:
    try:
        settings = settings_module.load()
        logs.configure("agent", settings.log_level, with_prompts=settings.log_prompts)
        _run(settings)
    except SettingsError as exc:
        print(f"llmis agent: {exc}", file=sys.stderr)
        return 1
    except redis.RedisError as exc:
        print(f"llmis agent: Redis does not answer at REDIS_URL: {exc}", file=sys.stderr)
        return 1
    return 0


def _run(settings: Settings) -> None:
    if not settings.redis_url:
        raise SettingsError("redis_url: an agent joins a service: set REDIS_URL to its Redis")
    client = connect(settings)
    check_server(client)
    agent = Agent(settings, client)
    agent.start()
    tasks.serve(agent)
    signals.worker_shutting_down.connect(_on_shutting_down(agent), weak=False)
    worker = app.Worker(
        hostname=f"agent@{settings.node}",
        queues=[names.node_queue(settings.node)],
        pool="threads",
        concurrency=_NUM_OPERATIONS,
        loglevel=settings.log_level.upper(),
        without_mingle=True,
        without_gossip=True,
    )
    _reload(agent)
    worker.start()
    agent.stop()
    if agent.is_restarting:
        sys.stdout.flush()
        # The same process: it stays the parent of its replicas, and its supervisor's child.
        command = [sys.executable, "-m", "worker.agent"]
        os.execv(sys.executable, command)  # noqa: S606 # nosec B606 # fixed words


def _reload(agent: Agent) -> None:
    """Load again what died with the agent before this one."""
    live = [record.model for record in registry.read(agent.client)]
    for model, (spec, num_dead) in agent.dead_models().items():
        operation_id, is_new = operations.begin_load(
            agent.client,
            spec,
            replicas=live.count(model) + num_dead,
            nodes=[agent.node],
            deadline_at=time.time() + agent.settings.load_timeout_s,
            is_on_demand=False,
        )
        if is_new:
            tasks.load_model.apply_async([operation_id], queue=names.node_queue(agent.node))


def _on_shutting_down(agent: Agent) -> Any:
    return lambda **_: agent.begin_stop()


if __name__ == "__main__":
    sys.exit(main())
