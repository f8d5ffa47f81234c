"""The parts of a replica process, from the load of its model to its stop.

Threads: Celery's consumer (main), one task thread per slot, the engine loop, the publisher, the
heartbeat, the parent watch.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from celery import signals

from shared import names
from shared.celery_app import app
from shared.denylist.file import denylist_of
from shared.errors import SettingsError
from shared.model_spec import ModelSpec
from shared.periodic import run_periodically
from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases
from shared.redis.connection import connect
from shared.registry import records
from shared.registry.records import BEAT_S
from shared.settings.fields import Settings
from shared.version import VERSION
from shared.wire.job import Sampling
from shared.wire.records import Assignment, ReplicaState
from worker.chat.template import ChatTemplate, UnusableTemplate
from worker.chat.template_probe import shows_text
from worker.engines import registry
from worker.engines.base import Engine, EngineSettings
from worker.replica import poison, tasks
from worker.replica.context import ReplicaContext
from worker.replica.drain import Drain, PutBack
from worker.replica.engine_loop import EngineLoop
from worker.replica.heartbeat import Heartbeat
from worker.replica.parent_watch import ParentWatch
from worker.replica.prompt import PromptBuilder
from worker.replica.publisher import Publisher
from worker.replica.status import ReplicaStatus
from worker.replica.threads import daemon_thread
from worker.sequence import Sequence, Speculation

_log = logging.getLogger(__name__)


class ReplicaProcess:
    """Owns the parts of the process."""

    def __init__(self, settings: Settings, assignment: Assignment, replica_id: str) -> None:
        self._settings = settings
        self._spec = assignment.spec
        self.id = replica_id
        self._client = connect(settings, max_connections=self._spec.slots + 8, at_oom=True)
        self._publisher = Publisher(
            connect(settings, max_connections=1),
            settings.job_ttl_s,
            settings.request_timeout_s,
            settings.stream_pace_ms / 1000,
        )
        self._status = ReplicaStatus(assignment, replica_id, _versions(self._spec.engine))
        self._running_ttl_s = int(settings.request_timeout_s) + settings.job_ttl_s
        self._queue = JobQueue(self._client, self._running_ttl_s)
        self._loop: EngineLoop | None = None
        self._denylist = denylist_of(settings)
        self._heartbeat = Heartbeat(
            self._client,
            self._status.record,
            self._publisher,
            settings,
            take_turns=lambda: self._queue.take_turns(self._spec.name, settings.lower_class_turn_s),
            on_wedged=self._die,
            denylist=self._denylist,
        )
        agent_pid = int(os.environ.get("LLMIS_AGENT_PID", "0"))
        self._parent_watch = ParentWatch(self._client, settings.node, agent_pid, _terminate)

    def run(self) -> None:
        """Load, then serve until SIGTERM or SIGINT. Raises SettingsError, LlmisError."""
        self._heartbeat.start()
        check_parent = partial(run_periodically, self._parent_watch.check, BEAT_S, "parent watch")
        daemon_thread("parent-watch", check_parent).start()
        engine = self._load()
        self._loop = loop = EngineLoop(engine, self._publisher.emit)
        prompts = _prompt_builder(self._spec, engine, self._settings)
        self._status.observe(loop, engine, prompts, lambda: self._publisher.age_s)
        self._connect_parts(engine, loop, prompts)
        self._publisher.start()
        loop.start()
        self._heartbeat.supervise(loop)
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

    def _connect_parts(self, engine: Engine, loop: EngineLoop, prompts: PromptBuilder) -> None:
        """Let Celery's tasks and signals reach the parts."""
        drain = Drain(
            self._client,
            self.id,
            self._spec.name,
            loop,
            self._settings.drain_grace_s,
            announce=self._heartbeat.announce,
        )
        tasks.serve(
            ReplicaContext(
                id=self.id,
                client=self._client,
                queue=self._queue,
                leases=JobLeases(
                    self._client,
                    self.id,
                    job_ttl_s=self._settings.job_ttl_s,
                    running_ttl_s=self._running_ttl_s,
                ),
                loop=loop,
                publisher=self._publisher,
                prompts=prompts,
                vocabulary=engine.vocabulary,
                running_ttl_s=self._running_ttl_s,
                max_queue_s=self._settings.max_queue_s,
                is_draining=lambda: drain.has_begun,
                on_busy=self._heartbeat.announce_soon,
                denylist=self._denylist,
            )
        )
        self._publisher.on_dropped = loop.cancel
        app.steps["consumer"].add(PutBack)
        signals.worker_ready.connect(self._on_ready)
        signals.worker_shutting_down.connect(lambda **_: self._on_shutting_down(drain), weak=False)

    def _load(self) -> Engine:
        spec, started = self._spec, time.monotonic()
        self._status.enter("reading weights")
        cores = os.cpu_count() or 1
        threads = min(spec.threads, cores) or max(1, cores - 1)
        engine = registry.load(
            spec.engine,
            EngineSettings(
                self._settings.resolve_weights(spec.name, spec.path),
                spec.context_length,
                spec.slots,
                threads,
                spec.device,
                spec.quant,
                self._status.read_weights,
                spec.cache_tokens,
                self._speculation(),
                spec.task,
                poison.recall(self._client, spec.name),
            ),
        )
        self._status.enter("warming up")
        warm_up(engine)
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
        self._status.become(ReplicaState.READY)
        # Requests that wait for the replica see its record now, not after the next beat.
        self._heartbeat.announce()
        _log.info("replica ready", extra={"model": self._spec.name, "replica": self.id})

    def _on_shutting_down(self, drain: Drain) -> None:
        self._status.become(ReplicaState.DRAINING)
        drain.begin()

    def _die(self) -> None:
        """End the process: without its engine loop it can only keep jobs waiting.

        No orderly end: Celery would wait for tasks that never finish. Their jobs are recovered
        when the replica is gone.
        """
        _log.critical("the engine loop or the publisher is dead, the process ends")
        if self._loop is not None and self._loop.fatal_reason:
            # The agent reads the reason from the last such line.
            sys.stderr.write(f"llmis replica: {self._loop.fatal_reason}\n")
            sys.stderr.flush()
        try:
            self._publisher.stop(self._settings.redis_timeout_s)
            if self._loop is not None and self._loop.poison:
                poison.remember(self._client, self._spec.name, self._loop.poison)
            records.withdraw(self._client, self.id)
        finally:
            os._exit(70)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _versions(engine: str) -> dict[str, str]:
    found = {"llmis": VERSION}
    for package in registry.PACKAGES.get(engine, ()):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def warm_up(engine: Engine) -> None:
    """Generate one token: what an engine prepares in its first step is there before requests.
    Raises LlmisError if the model gives none."""
    max_tokens = 0 if engine.embeds else 1
    prompt = engine.vocabulary.tokenize("", add_special=True, parse_special=False) or [0]
    engine.submit(Sequence(("warm-up", 0), prompt, max_tokens, Sampling(temperature=0.0)))
    while engine.has_work:
        for result in engine.step():
            if result.error is not None:
                raise result.error


def _prompt_builder(spec: ModelSpec, engine: Engine, settings: Settings) -> PromptBuilder:
    return PromptBuilder(
        engine,
        _chat_template(spec.chat_template, engine),
        spec.stop,
        strip_leading_space=spec.strip_leading_space,
        max_prompt_logprobs=settings.max_prompt_logprobs,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_completion_tokens=settings.max_completion_tokens,
    )


def _chat_template(
    configured: str | None, engine: Engine
) -> ChatTemplate | UnusableTemplate | None:
    """The configured template, or the model's own. Raises SettingsError for one that leaves out
    what users write, and for a configured one that does not compile."""
    if not (source := configured or engine.chat_template or engine.tool_use_template):
        return None
    for_tools = None if configured else _template_for_tools(engine)
    try:
        template = _compiled(source, engine, for_tools)
    except SettingsError as exc:
        if configured:
            raise
        _log.warning("the model's own chat template cannot be used: %s", exc)
        return UnusableTemplate(str(exc))
    for with_tools in (False, True):
        chosen = template.for_tools if with_tools else template
        if shows_text(chosen, with_tools=with_tools) is False:
            raise SettingsError(
                "chat_template: it leaves out the text of the user's messages"
                f"{' when there are tools' if with_tools else ''}, given as a string or as a list "
                "of parts. Give the model another one with chat_template in its settings."
            )
    return template


def _template_for_tools(engine: Engine) -> ChatTemplate | None:
    """The model's own template for requests with tools, if it has one that can be used."""
    if not engine.tool_use_template:
        return None
    try:
        template = _compiled(engine.tool_use_template, engine)
    except SettingsError as exc:
        _log.warning("the model's template for requests with tools cannot be used: %s", exc)
        return None
    if shows_text(template, with_tools=True):
        return template
    _log.warning("the model's template for requests with tools shows no text of users: not used")
    return None


def _compiled(source: str, engine: Engine, for_tools: ChatTemplate | None = None) -> ChatTemplate:
    vocabulary = engine.vocabulary
    return ChatTemplate(
        source,
        vocabulary.bos_text,
        vocabulary.eos_text,
        strip_bos=vocabulary.adds_bos,
        for_tools=for_tools,
    )
