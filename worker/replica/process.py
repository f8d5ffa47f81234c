"""The replica process: `python -m worker.replica ASSIGNMENT REPLICA` loads a model and serves it.

An agent starts it. The assignment, which lies in Redis, says what to load; the replica id is
this process's own. Threads: Celery's consumer (main), one task thread a slot, the engine loop,
the publisher, the heartbeat.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import redis
from celery import signals

from shared import lifecycle, logs, names, registry
from shared import settings as settings_module
from shared.celery_app import app
from shared.connections import connect
from shared.denylist_file import denylist_of
from shared.errors import LlmisError, ReplicaLost, SettingsError
from shared.job_queue import JobQueue
from shared.lifecycle import Assignment, ModelSpec
from shared.messages import ReplicaState, Sampling
from shared.settings import Settings
from shared.version import VERSION
from worker import engines, suspects, tasks
from worker.chat.template import ChatTemplate
from worker.drain import Drain, PutBack
from worker.engine_loop import EngineLoop
from worker.engines.protocol import Engine, EngineSettings, Sequence, Speculation
from worker.heartbeat import Heartbeat
from worker.keeper import Keeper
from worker.prompt import PromptBuilder
from worker.publisher import Publisher
from worker.vital_signs import Capacity, VitalSigns

_log = logging.getLogger(__name__)
_TAKEN_OVER = "Another replica has taken the request over."


class ReplicaProcess:
    """Owns what the process is made of, from load to stop."""

    def __init__(self, settings: Settings, assignment: Assignment, replica_id: str) -> None:
        self._settings = settings
        self._spec = assignment.spec
        self.id = replica_id
        self._client = connect(settings, max_connections=self._spec.slots + 8)
        self._publisher = Publisher(
            connect(settings, max_connections=2), settings.job_ttl_s, settings.request_timeout_s
        )
        self._vital_signs = VitalSigns(assignment, replica_id, _versions(self._spec.engine))
        self._running_ttl_s = int(settings.request_timeout_s) + settings.job_ttl_s
        self._queue = JobQueue(self._client, self._running_ttl_s)
        self._loop: EngineLoop | None = None
        self._denylist = denylist_of(settings)
        self._heartbeat = Heartbeat(
            self._client,
            self._vital_signs.record,
            self._publisher,
            settings.orphan_grace_s,
            settings.job_ttl_s,
            settings.max_step_gap_s,
            take_turns=lambda: self._queue.take_turns(self._spec.name, settings.lower_class_turn_s),
            on_wedged=self._die,
            is_kept=Keeper(
                self._client, settings.node, int(os.environ.get("LLMIS_AGENT_PID", "0"))
            ).is_there,
            on_abandoned=lambda: os.kill(os.getpid(), signal.SIGTERM),
            denylist=self._denylist,
        )

    def run(self) -> None:
        """Load, then serve until SIGTERM or SIGINT. Raises SettingsError, LlmisError."""
        self._heartbeat.start()
        engine = self._load()
        self._loop = loop = EngineLoop(engine, self._publisher.emit)
        prompts = _prompt_builder(self._spec, engine, self._settings)
        self._vital_signs.observe(
            loop, lambda: _capacity(engine, prompts), lambda: self._publisher.age_s
        )
        drain = Drain(
            self._client,
            self.id,
            self._spec.name,
            loop,
            self._settings.drain_grace_s,
            announce=self._heartbeat.announce,
        )
        tasks.serve(
            tasks.Replica(
                id=self.id,
                client=self._client,
                loop=loop,
                publisher=self._publisher,
                prompts=prompts,
                vocabulary=engine.vocabulary,
                on_busy=self._heartbeat.announce,
                job_ttl_s=self._settings.job_ttl_s,
                queue=self._queue,
                running_ttl_s=self._running_ttl_s,
                max_queue_s=self._settings.max_queue_s,
                is_draining=lambda: drain.has_begun,
                denylist=self._denylist,
            )
        )
        app.steps["consumer"].add(PutBack)
        signals.worker_ready.connect(self._on_ready)
        signals.worker_shutting_down.connect(lambda **_: self._on_shutting_down(drain), weak=False)
        self._publisher.on_fenced = lambda job_id: loop.cancel(job_id, ReplicaLost(_TAKEN_OVER))
        self._publisher.start()
        loop.start()
        self._heartbeat.look_after(loop)
        worker = app.Worker(
            hostname=self.id,
            queues=[names.model_queue(self._spec.name)],
            pool="threads",
            concurrency=self._spec.slots,
            loglevel=self._settings.log_level.upper(),
            without_mingle=True,
            without_gossip=True,
        )
        worker.start()
        loop.stop()
        self._publisher.stop(self._settings.redis_timeout_s)
        self._heartbeat.stop()
        engine.close()

    def _load(self) -> Engine:
        spec, started = self._spec, time.monotonic()
        self._vital_signs.enter("reading weights")
        cores = os.cpu_count() or 1
        threads = min(spec.threads, cores) or max(1, cores - 1)
        engine = engines.load(
            spec.engine,
            EngineSettings(
                self._settings.resolve_weights(spec.name, spec.path),
                spec.context_length,
                spec.slots,
                threads,
                spec.device,
                spec.quant,
                self._vital_signs.read_weights,
                spec.cache_tokens,
                self._speculation(),
                spec.task,
                suspects.recall(self._client, spec.name),
            ),
        )
        self._vital_signs.enter("warming up")
        _warm_up(engine)
        load_s = round(time.monotonic() - started, 2)
        _log.info("model loaded", extra={"model": spec.name, "load_s": load_s})
        return engine

    def _speculation(self) -> Speculation | None:
        spec = self._spec
        if not spec.draft:
            return None
        is_ngram = spec.draft == "ngram"
        path = None if is_ngram else self._settings.resolve_weights(spec.name, spec.draft)
        return Speculation(path, spec.draft_tokens)

    def _on_ready(self, **_: Any) -> None:
        self._vital_signs.become(ReplicaState.READY)
        # Who waits for the replica is told now, not with the next beat.
        self._heartbeat.announce()
        _log.info("replica ready", extra={"model": self._spec.name, "replica": self.id})

    def _on_shutting_down(self, drain: Drain) -> None:
        self._vital_signs.become(ReplicaState.DRAINING)
        drain.begin()

    def _die(self) -> None:
        """Without its engine loop the process can only keep jobs waiting: let it be replaced.

        No orderly end: Celery would wait for tasks that nobody finishes. Their relays see that
        the replica is gone.
        """
        _log.critical("the engine loop or the publisher is dead, the process ends")
        if self._loop is not None and self._loop.last_words:
            # The agent reads the reason from the last such line.
            print(f"llmis replica: {self._loop.last_words}", file=sys.stderr, flush=True)
        try:
            self._publisher.stop(self._settings.redis_timeout_s)
            if self._loop is not None and self._loop.suspects:
                suspects.remember(self._client, self._spec.name, self._loop.suspects)
            registry.withdraw(self._client, self.id)
        finally:
            os._exit(70)


def _versions(engine: str) -> dict[str, str]:
    found = {"llmis": VERSION}
    for package in engines.PACKAGES.get(engine, ()):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _capacity(engine: Engine, prompts: PromptBuilder) -> Capacity:
    return Capacity(
        engine.free_slots,
        engine.context_length,
        engine.device,
        prompts.capabilities,
        engine.device_bytes,
        engine.kv_usage,
    )


def _warm_up(engine: Engine) -> None:
    """One token: what the engine makes at its first step is made before the first request."""
    max_tokens = 0 if engine.embeds else 1
    engine.submit(Sequence(("warm-up", 0), [0], max_tokens, Sampling(temperature=0.0)))
    while engine.has_work:
        engine.step()


def _prompt_builder(spec: ModelSpec, engine: Engine, settings: Settings) -> PromptBuilder:
    template = _chat_template(spec.chat_template, engine)
    return PromptBuilder(
        engine,
        template,
        spec.stop,
        strip_leading_space=spec.strip_leading_space,
        max_prompt_logprobs=settings.max_prompt_logprobs,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_completion_tokens=settings.max_completion_tokens,
    )


def _chat_template(configured: str | None, engine: Engine) -> ChatTemplate | None:
    """The configured template, or the model's own if that is one. Raises SettingsError."""
    source = configured or engine.chat_template
    if not source:
        return None
    try:
        vocabulary = engine.vocabulary
        return ChatTemplate(
            source, vocabulary.bos_text, vocabulary.eos_text, strip_bos=vocabulary.adds_bos
        )
    except SettingsError as exc:
        if configured:
            raise
        _log.warning("the model's own chat template cannot be used: %s", exc)
        return None


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m worker.replica ASSIGNMENT REPLICA", file=sys.stderr)
        return 2
    assignment_id, replica_id = arguments
    try:
        settings = settings_module.load()
        logs.configure("replica", settings.log_level, with_prompts=settings.log_prompts)
        client = connect(settings, max_connections=1)
        payload = client.hget(names.assignments_key(settings.node), assignment_id)
        assignment = lifecycle.decode(payload, Assignment)
        if assignment is None:
            raise SettingsError(f"there is no assignment {assignment_id!r}; the agent makes them")
        # A task that waits for its turn must not hold the GIL away from the engine loop.
        sys.setswitchinterval(0.001)
        ReplicaProcess(settings, assignment, replica_id).run()
    except (SettingsError, LlmisError) as exc:
        print(f"llmis replica: {exc}", file=sys.stderr)
        return 1
    except redis.RedisError as exc:
        print(f"llmis replica: Redis does not answer at REDIS_URL: {exc}", file=sys.stderr)
        return 75  # worth another try
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
