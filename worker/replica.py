"""The replica process: `python -m worker.replica MODEL` loads a model and serves its queue.

Threads: Celery's consumer (main), one task thread a slot, the engine loop, the publisher, the
heartbeat.
"""

import logging
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import redis
from celery import signals

from shared import logs, names, registry
from shared import settings as settings_module
from shared.celery_app import app
from shared.connections import connect
from shared.errors import LlmisError, SettingsError, Unavailable
from shared.messages import ReplicaRecord, ReplicaState
from shared.settings import ModelSettings, Settings
from worker import engines, tasks
from worker.engine_loop import EngineLoop
from worker.engines.protocol import Engine, EngineSettings
from worker.heartbeat import Heartbeat
from worker.prompt import ChatTemplate, PromptBuilder
from worker.publisher import Publisher

_log = logging.getLogger(__name__)


class ReplicaProcess:
    """Owns what the process is made of, from load to stop."""

    def __init__(self, settings: Settings, model: ModelSettings) -> None:
        self._settings = settings
        self._model = model
        self._state = ReplicaState.LOADING
        self._started_at = time.time()
        self.id = f"{model.name}@{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._client = connect(settings, max_connections=model.slots + 8)
        self._publisher = Publisher(
            connect(settings, max_connections=2), settings.job_ttl_s, settings.request_timeout_s
        )
        self._engine = _load_engine(settings, model)
        self._loop = EngineLoop(self._engine, self._publisher.emit)
        self._heartbeat = Heartbeat(
            self._client,
            self._record,
            self._loop,
            self._publisher,
            settings.orphan_grace_s,
            self._die,
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        tasks.serve(
            tasks.Replica(
                id=self.id,
                client=self._client,
                loop=self._loop,
                publisher=self._publisher,
                prompts=_prompt_builder(self._settings, self._model, self._engine),
                job_ttl_s=int(self._settings.request_timeout_s) + self._settings.job_ttl_s,
            )
        )
        signals.worker_ready.connect(self._on_ready)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        self._publisher.start()
        self._loop.start()
        self._heartbeat.start()
        worker = app.Worker(
            hostname=self.id,
            queues=[names.model_queue(self._model.name)],
            pool="threads",
            concurrency=self._model.slots,
            loglevel=self._settings.log_level.upper(),
            without_mingle=True,
            without_gossip=True,
        )
        worker.start()
        self._loop.stop()
        self._publisher.stop(self._settings.redis_timeout_s)
        self._heartbeat.stop()
        self._engine.close()

    def _on_ready(self, **_: Any) -> None:
        self._state = ReplicaState.READY
        _log.info("replica ready", extra={"model": self._model.name, "replica": self.id})

    def _on_shutting_down(self, **_: Any) -> None:
        """Celery waits for the running tasks: end those that take longer than the grace time."""
        self._state = ReplicaState.DRAINING
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        time.sleep(self._settings.drain_grace_s)
        while True:  # until the process ends: a task may still be on its way into the loop
            for run in self._loop.running():
                self._loop.cancel(run.id, Unavailable("The service is shutting down."))
            time.sleep(0.1)

    def _die(self) -> None:
        """Without its engine loop the process can only keep jobs waiting: let it be replaced.

        No orderly end: Celery would wait for tasks that nobody finishes. Their relays see that
        the replica is gone.
        """
        _log.critical("the engine loop or the publisher is dead, the process ends")
        try:
            self._publisher.stop(self._settings.redis_timeout_s)
            registry.withdraw(self._client, self.id)
        finally:
            os._exit(70)

    def _record(self) -> ReplicaRecord:
        return ReplicaRecord(
            id=self.id,
            model=self._model.name,
            engine=self._engine.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self._state,
            slots=self._model.slots,
            busy_slots=self._model.slots - self._engine.free_slots,
            waiting_sequences=self._loop.num_waiting,
            context_length=self._engine.context_length,
            steps=self._loop.num_steps,
            step_age_s=self._loop.step_age_s,
            generated_tokens=self._loop.num_generated_tokens,
            started_at=self._started_at,
        )


def _load_engine(settings: Settings, model: ModelSettings) -> Engine:
    started = time.monotonic()
    threads = model.threads or max(1, (os.cpu_count() or 1) - 1)
    engine = engines.load(
        model.engine,
        EngineSettings(settings.weights_path(model), model.context_length, model.slots, threads),
    )
    _log.info(
        "model loaded",
        extra={"model": model.name, "load_s": round(time.monotonic() - started, 2)},
    )
    return engine


def _prompt_builder(settings: Settings, model: ModelSettings, engine: Engine) -> PromptBuilder:
    template = _chat_template(settings.template_path(model), engine)
    return PromptBuilder(
        engine, template, model.stop, strip_leading_space=model.strip_leading_space
    )


def _chat_template(path: Path | None, engine: Engine) -> ChatTemplate | None:
    """The configured template, or the model's own if that is one. Raises SettingsError."""
    try:
        source = path.read_text("utf-8") if path else engine.chat_template
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"chat_template: cannot read {path}: {exc}") from exc
    if not source:
        return None
    try:
        return ChatTemplate(source, engine.bos_text, engine.eos_text, strip_bos=engine.adds_bos)
    except SettingsError as exc:
        if path:
            raise
        _log.warning("the model's own chat template cannot be used: %s", exc)
        return None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m worker.replica MODEL", file=sys.stderr)
        return 2
    try:
        settings = settings_module.load()
        model = settings.model(arguments[0])
        if model is None:
            raise SettingsError(f"models: there is no model {arguments[0]!r} in the settings")
        logs.configure("replica", settings.log_level)
        # A task that waits for its turn must not hold the GIL away from the engine loop.
        sys.setswitchinterval(0.001)
        ReplicaProcess(settings, model).run()
    except (SettingsError, LlmisError) as exc:
        print(f"llmis replica: {exc}", file=sys.stderr)
        return 1
    except redis.RedisError as exc:
        print(f"llmis replica: Redis does not answer at REDIS_URL: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
