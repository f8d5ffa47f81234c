"""`llmis up`: everything on this machine, in the foreground.

Starts Redis (unless `redis_url` is set), an agent, the web tier and Flower, restarts those that
end, and stops all of them in order on SIGINT, SIGTERM or SIGHUP.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO

import msgspec
import redis

from cli.address import url_of
from cli.client import ServiceClient
from cli.service import embedded_redis, flower, own_key, preconditions, processes, readiness
from cli.service.preconditions import StartError
from cli.service.supervisor import Child, stop
from shared import api_keys, log_files, names
from shared.denylist.file import check_denylist
from shared.errors import InsufficientResources, SettingsError
from shared.redis.connection import check_server, connect
from shared.settings.fields import Settings
from shared.settings.load import load as load_settings
from shared.wire.records import ModelState

_READY_MARGIN_S = 60.0
"""Added to `load_timeout_s` for the start of the processes."""
_POLL_S = 0.1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _StopSignal(Exception):
    """One of `_STOP_SIGNALS` arrived."""


def main() -> int:
    for signum in _STOP_SIGNALS:
        signal.signal(signum, _on_signal)
    service: LocalService | None = None
    status = 0
    try:
        service = LocalService(load_settings())
        service.start()
        service.watch()
    except _StopSignal:
        pass
    except (SettingsError, StartError) as exc:
        print(f"llmis: {exc}", file=sys.stderr)
        status = 1
    finally:
        _ignore_signals()
        if service is not None:
            service.stop()
    return status


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    raise _StopSignal


def _ignore_signals() -> None:
    """A second signal must not interrupt the orderly stop."""
    for signum in _STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _say(text: str) -> None:
    print(text, flush=True)


class LocalService:
    """The processes on this machine. The main thread alone starts, watches and stops them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._env = dict(os.environ)
        self._redis: Child | None = None
        self._agent: Child | None = None
        """It starts the replicas, and stops them when it stops."""
        self._front: list[Child] = []
        """Web tier and Flower: stopped first."""
        self._lock: IO[str] | None = None
        self._key = ""
        """The service's own API key; empty = `auth` is off."""
        self._has_keys = True
        """Whether there are other API keys than that."""

    @property
    def _children(self) -> list[Child]:
        return self._front + [child for child in (self._agent, self._redis) if child is not None]

    # -- start -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until the preloaded models answer. Raises StartError."""
        settings = self._settings
        check_denylist(settings)  # an error in it is reported here, not in a log
        self._lock = preconditions.lock_folders(settings)
        preconditions.check_ports(settings)
        self._start_redis()
        self._agent = self._spawn("agent", processes.agent())
        self._front.append(self._spawn("web", processes.web()))
        client = ServiceClient(url_of(settings), self._key)
        self._wait(lambda: readiness.web_answers(client), "web")
        _say("  the web tier answers")
        for model in settings.models:
            if model.preload:
                self._wait_for_model(client, model.name)
        if settings.flower_port:
            # Last: it asks the workers for their queues once, when it starts.
            credentials = flower.credentials(settings)
            self._front.append(self._spawn("flower", processes.flower(settings), credentials))
        self._say_addresses()

    def _say_addresses(self) -> None:
        settings = self._settings
        _say(f"llmis is ready: {url_of(settings)}/")
        if settings.flower_port:
            _say(f"  Flower: {flower.url_of(settings)} (answers in a few seconds)")
            if settings.auth and not settings.flower_password:
                _say(f"    user llmis, password in {flower.password_path(settings)}")
        if settings.auth and not self._has_keys and not settings.jwt_jwks:
            _say("  no API key yet: `llmis keys create NAME` makes one")
        _say(f"  logs: {self._log_folder}    Ctrl-C stops everything")

    def _start_redis(self) -> None:
        if not self._settings.redis_url:
            command, url = embedded_redis.prepare(self._settings)
            self._env["REDIS_URL"] = url
            self._settings = msgspec.structs.replace(self._settings, redis_url=url)
            self._redis = self._spawn("redis", command)
        client = connect(self._settings, max_connections=1)
        if self._redis is not None:
            self._wait(lambda: _answers_ping(client), "redis")
        try:
            check_server(client)
            # The reason of an earlier failed load may have gone.
            client.delete(names.FAILURES)
            if self._settings.auth:
                self._key = own_key.make(self._settings, client)
                self._has_keys = len(api_keys.read(client)) > 1  # 1 is the service's own
        except (redis.RedisError, ValueError) as exc:
            raise StartError(
                f"Redis does not answer at REDIS_URL: {exc}. Start it, correct REDIS_URL, "
                "or unset it to use the embedded server."
            ) from exc
        _say("  embedded Redis answers" if self._redis is not None else "  Redis answers")

    def _spawn(self, name: str, command: list[str], more: Mapping[str, str] | None = None) -> Child:
        """Start a child. `more`: environment variables of this child alone."""
        log_path = self._log_folder / f"{name}.log"
        child = Child(name, command, log_path, {**self._env, **(more or {})})
        log_files.set_aside(log_path, self._settings)  # it may say why the last start ended
        child.start()
        return child

    def _wait(self, is_done: Callable[[], bool], name: str) -> None:
        """Wait for a child to do its work. Raises StartError, with its log if it ends instead."""
        timeout_s = self._settings.load_timeout_s + _READY_MARGIN_S
        deadline = time.monotonic() + timeout_s
        child = next((c for c in self._children if c.name == name), None)
        while not is_done():
            if child is not None and not child.is_running:
                raise StartError(f"{name} did not start. The end of its log:\n{child.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{name} is not ready after {timeout_s:g} s; see its log")
            time.sleep(_POLL_S)

    def _wait_for_model(self, client: ServiceClient, name: str) -> None:
        """Wait until a model answers and print the stages of its load.

        A model for which the memory is too small is reported and skipped. Raises StartError if
        the load fails for another reason.
        """
        stage = ""

        def is_done() -> bool:
            nonlocal stage
            model = readiness.find_model(client, name)
            if model is None:
                return False
            if model.state is ModelState.FAILED and model.error is not None:
                if model.error.type != InsufficientResources.type:
                    raise StartError(f"models: {model.error.message}")
                _say(f"  {name} is not loaded: {model.error.message}")
                return True
            if model.load is not None and model.load.stage != stage:
                stage = model.load.stage
                _say(f"  {name}: {stage}")
            if model.state is not ModelState.READY or not readiness.model_answers(client, name):
                return False
            _say(f"  {name} answers")
            return True

        self._wait(is_done, "agent")

    @property
    def _log_folder(self) -> Path:
        return self._settings.data_path / "logs"

    # -- watch and stop ----------------------------------------------------------------------

    def watch(self) -> None:
        """Restart every child that ends, until a signal arrives."""
        while True:
            for child in self._children:
                report = child.watch()
                if report:
                    _say(f"  {report}; log: {child.log_path}")
                try:
                    log_files.rotate(child.log_path, self._settings)
                except OSError as exc:
                    _say(f"  {child.log_path} was emptied, and no copy could be kept: {exc}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop clients first, then the engines, Redis last: it keeps the queued requests."""
        if self._children:
            _say("llmis stops ...")
        grace_s = self._settings.drain_grace_s + 8
        stop(self._front, grace_s)
        if self._agent is not None:
            # The agent kills the replicas after `grace_s`; it needs time for that.
            stop([self._agent], grace_s + 6)
        if self._key:
            try:
                own_key.revoke(self._settings, connect(self._settings, max_connections=1))
            except redis.RedisError as exc:
                _say(f"  the service's own API key stays valid until its next start: {exc}")
        if self._redis is not None:
            stop([self._redis], 10)
            embedded_redis.url_path(self._settings).unlink(missing_ok=True)


def _answers_ping(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
