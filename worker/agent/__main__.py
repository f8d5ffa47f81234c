"""The agent process: `python -m worker.agent` makes this host a node of the service. It needs
`REDIS_URL` and the weights in its model folder."""

import gc
import logging
import os
import sys

if __name__ == "__main__":
    # The imports make objects that stay. To look for garbage among them is a tenth of their time.
    gc.disable()

import msgspec
import redis
from celery import signals

from shared import logs, names
from shared.celery_app import app
from shared.clock import clock
from shared.errors import SettingsError
from shared.redis.connection import check_server, connect
from shared.registry import operations, records
from shared.settings.fields import Settings
from shared.settings.load import load as load_settings
from worker.agent import tasks
from worker.agent.agent import Agent

_log = logging.getLogger(__name__)
_NUM_OPERATIONS = 128
"""Threads for concurrent loads and unloads. They mostly wait, so there are many: an unload must
not queue behind loads that wait for the memory it would free."""


def main() -> int:
    gc.freeze()  # no later collection looks at what the imports have made
    gc.enable()
    try:
        settings = load_settings()
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
    client = connect(settings, at_oom=True)
    check_server(client)
    clock.measure(client)
    agent = Agent(settings, client)
    agent.start()
    tasks.set_agent(agent)
    signals.worker_shutting_down.connect(lambda **_: agent.begin_stop(), weak=False)
    worker = app.Worker(
        hostname=f"agent@{settings.node}",
        queues=[names.node_queue(settings.node)],
        pool="threads",
        concurrency=_NUM_OPERATIONS,
        loglevel=settings.log_level.upper(),
        without_mingle=True,
        without_gossip=True,
    )
    # Before the worker starts: the loads wait in the node's queue.
    _reload(agent)
    worker.start()
    agent.stop()
    if agent.is_restarting:
        sys.stdout.flush()
        # exec keeps the process id: the replicas and the supervisor see no change.
        command = [sys.executable, "-m", "worker.agent"]
        os.execv(sys.executable, command)  # noqa: S606 # nosec B606 # fixed words


def _reload(agent: Agent) -> None:
    """Go on with the loads of a previous agent that was killed, whose locks are still there, and
    load again the models whose replicas died with it."""
    for operation_id in operations.loads_of(agent.client, agent.node):
        tasks.load_model.apply_async([operation_id], queue=names.node_queue(agent.node))
    # A replica that stands still has no record, but its process goes on.
    here = [replica.model for replica in agent.replicas.all() if not replica.is_stopping]
    all_records = records.read(agent.client)
    live = here + [record.model for record in all_records if record.node != agent.node]
    for model, (spec, num_dead) in agent.dead_models().items():
        replicas = live.count(model) + num_dead
        operation_id, is_new = operations.begin_load(
            agent.client,
            spec,
            replicas=replicas,
            nodes=[agent.node],
            deadline_at=clock.now() + agent.settings.load_timeout_s,
            is_on_demand=False,
        )
        if is_new:
            tasks.load_model.apply_async([operation_id], queue=names.node_queue(agent.node))
        elif not _raise_replicas(agent, operation_id, replicas):
            _log.warning("%d replicas of %s were lost: it has another load", num_dead, model)


def _raise_replicas(agent: Agent, operation_id: str, replicas: int) -> bool:
    """Have a load that is under way start replicas that are lost, too: a request may have begun it
    while no agent ran. Returns False where it cannot: on another node, or when it restarts a
    replica."""
    command = operations.read_load(agent.client, operation_id)
    if command is None or command.node not in (None, agent.node):
        return False
    if command.replaces and agent.replicas.find(command.replaces) is not None:
        return False
    replicas = max(replicas, command.replicas)
    raised = msgspec.structs.replace(command, replicas=replicas, replaces="")
    operations.rewrite(agent.client, raised)
    return True


if __name__ == "__main__":
    sys.exit(main())
