"""`llmis up`: everything on this machine, in the foreground.

Starts Redis (unless `redis_url` is set), an agent, the web tier and Flower, restarts what
dies, and on SIGINT or SIGTERM stops all of it in order.
"""

import fcntl
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

import msgspec
import redis

from cli import embedded_redis, flower, own_key, processes
from cli.address import url_of
from cli.supervisor import Child, stop
from shared import api_keys, names
from shared import settings as settings_module
from shared.connections import check_server, connect
from shared.denylist_file import denylist_of
from shared.errors import InsufficientResources, SettingsError
from shared.settings import Settings

_READY_MARGIN_S = 60.0
"""Beyond `load_timeout_s`."""
_POLL_S = 0.1
# What is asked here runs on this machine: a proxy in the environment has no business with it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StartError(Exception):
    """The service cannot start; the message says what to do about it."""


class _Stopped(Exception):
    """SIGINT or SIGTERM came."""


def main() -> int:
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGHUP, _on_signal)
    service: _Service | None = None
    status = 0
    try:
        service = _Service(settings_module.load())
        service.start()
        service.watch()
    except _Stopped:
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
    raise _Stopped


def _ignore_signals() -> None:
    """A second signal must not break off the orderly stop."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _say(text: str) -> None:
    print(text, flush=True)


class _Service:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._env = dict(os.environ)
        self._redis: Child | None = None
        self._agent: Child | None = None
        """Starts the replicas, and stops them when it is stopped."""
        self._front: list[Child] = []
        """Web tier and Flower: stopped first."""
        self._lock: IO[str] | None = None
        self._key = ""
        """The service's own API key; empty = none is asked for."""
        self._has_keys = True
        """Others than that."""

    @property
    def _children(self) -> list[Child]:
        return [*self._front, *(child for child in (self._agent, self._redis) if child)]

    # -- start -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until the first model answers. Raises StartError."""
        settings = self._settings
        denylist_of(settings)  # a bad one is told here, not in a log
        self._prepare_folders()
        _check_port(settings.host, settings.port, "port", "LLMIS_PORT")
        if settings.flower_port:
            _check_port(
                settings.flower_host, settings.flower_port, "flower_port", "LLMIS_FLOWER_PORT"
            )
        self._start_redis()
        self._agent = self._spawn("agent", processes.agent())
        self._front.append(self._spawn("web", processes.web()))
        self._wait(lambda: self._get("/healthz") == 200, "web", "the web tier answers")
        for model in settings.models:
            if model.preload:
                self._wait_for_model(model.name)
        if settings.flower_port:
            # Last: it asks the workers for their queues once, when it starts.
            credentials = flower.credentials(settings)
            self._front.append(self._spawn("flower", processes.flower(settings), credentials))
        _say(f"llmis is ready: {self._url('/')}")
        if settings.flower_port:
            _say(f"  Flower: {flower.url_of(settings)}")
            if settings.auth and not settings.flower_password:
                _say(f"    user llmis, password in {flower.password_path(settings)}")
        if settings.auth and not self._has_keys and not settings.jwt_jwks:
            _say("  no API key yet: `llmis keys create NAME` makes one")
        _say(f"  logs: {self._log_folder}    Ctrl-C stops everything")

    def _prepare_folders(self) -> None:
        settings = self._settings
        try:
            for folder in (self._log_folder, settings.models_path):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = (settings.data_path / "lock").open("w")
        except OSError as exc:
            raise StartError(
                f"data_dir = {settings.data_dir!r} cannot be used: {exc}. "
                "Set LLMIS_DATA_DIR to a folder that can be written."
            ) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise StartError(
                f"another llmis runs on the data folder {settings.data_path}. "
                "Stop it, or set LLMIS_DATA_DIR to another folder."
            ) from exc

    def _start_redis(self) -> None:
        if not self._settings.redis_url:
            command, url = embedded_redis.prepare(self._settings)
            self._env["REDIS_URL"] = url
            self._settings = msgspec.structs.replace(self._settings, redis_url=url)
            self._redis = self._spawn("redis", command)
        client = connect(self._settings, max_connections=1)
        if self._redis is not None:
            self._wait(lambda: _answers_ping(client), "redis", "embedded Redis answers")
        try:
            check_server(client)
            # What could not be loaded the last time may be mended by now.
            client.delete(names.FAILURES)
            if self._settings.auth:
                self._key = own_key.make(self._settings, client)
                self._has_keys = len(api_keys.read(client)) > 1  # besides its own
        except (redis.RedisError, ValueError) as exc:
            raise StartError(
                f"Redis does not answer at REDIS_URL: {exc}. Start it, correct REDIS_URL, "
                "or unset it to use the embedded server."
            ) from exc
        if self._redis is None:
            _say("  Redis answers")

    def _spawn(self, name: str, command: list[str], more: Mapping[str, str] | None = None) -> Child:
        """`more`: environment variables for it alone."""
        log_path = self._log_folder / f"{name}.log"
        child = Child(name, command, log_path, {**self._env, **(more or {})})
        if log_path.exists():
            log_path.replace(log_path.with_suffix(".log.1"))  # why the last start ended
        child.start()
        return child

    def _wait(self, is_ready: Callable[[], bool], name: str, text: str) -> None:
        """Wait for a child to do its work; report its log when it ends instead."""
        timeout_s = self._settings.load_timeout_s + _READY_MARGIN_S
        deadline = time.monotonic() + timeout_s
        child = next((c for c in self._children if c.name == name), None)
        while not is_ready():
            if child is not None and not child.is_running:
                raise StartError(f"{name} did not start. The end of its log:\n{child.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{name} is not ready after {timeout_s:g} s; see its log")
            time.sleep(_POLL_S)
        _say(f"  {text}")

    def _wait_for_model(self, model: str) -> None:
        """Wait until a preloaded model answers, saying how far it is. Raises StartError."""
        said = ""

        def answers() -> bool:
            nonlocal said
            view = next((m for m in self._admin_models() if m["id"] == model), {})
            error = view.get("error") if view.get("state") == "failed" else None
            if error and error["type"] == InsufficientResources.type:
                _say(f"  {model} is not loaded: {error['message']}")
                return True
            if error:
                raise StartError(f"models: {error['message']}")
            load = view.get("load")
            if load and load["stage"] != said:
                said = load["stage"]
                _say(f"  {model}: {said}")
            return view.get("state") == "ready" and self._answers(model)

        self._wait(answers, "agent", f"{model} answers")

    def _admin_models(self) -> list[dict[str, Any]]:
        return list(self._get_json("/admin/models").get("data", []))

    def _answers(self, model: str) -> bool:
        """Ask the model for one token, or, as it may be one that embeds, for a vector."""
        questions = {
            "/v1/completions": {"model": model, "prompt": "1", "max_tokens": 1},
            "/v1/embeddings": {"model": model, "input": "1"},
        }
        return any(
            self._get(path, msgspec.json.encode(body)) == 200 for path, body in questions.items()
        )

    def _get(self, path: str, body: bytes | None = None) -> int:
        """Status of a GET, or of a POST when there is a body; 0 when nobody answers."""
        try:
            with _opener.open(self._request(path, body), timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as exc:
            return exc.code
        except OSError:
            return 0

    def _get_json(self, path: str) -> dict[str, Any]:
        try:
            with _opener.open(self._request(path), timeout=10) as response:
                return dict(msgspec.json.decode(response.read()))
        except OSError:
            return {}

    def _request(self, path: str, body: bytes | None = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return urllib.request.Request(self._url(path), body, headers)

    def _url(self, path: str) -> str:
        return url_of(self._settings) + path

    @property
    def _log_folder(self) -> Path:
        return self._settings.data_path / "logs"

    # -- watch and stop ----------------------------------------------------------------------

    def watch(self) -> None:
        """Restart what ends by itself, for ever."""
        while True:
            for child in self._children:
                report = child.watch()
                if report:
                    _say(f"  {report}; log: {child.log_path}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Clients first, then the engines, Redis last: it keeps what is still queued."""
        if self._children:
            _say("llmis stops ...")
        grace_s = self._settings.drain_grace_s + 8
        stop(self._front, grace_s)
        if self._agent is not None:
            # Longer than it gives the replicas before it kills them.
            stop([self._agent], grace_s + 6)
        if self._key:
            self._revoke_key()
        if self._redis is not None:
            stop([self._redis], 10)
            embedded_redis.url_path(self._settings).unlink(missing_ok=True)

    def _revoke_key(self) -> None:
        try:
            own_key.revoke(self._settings, connect(self._settings, max_connections=1))
        except redis.RedisError as exc:
            _say(f"  the service's own API key is not revoked before its next start: {exc}")


def _check_port(host: str, port: int, setting: str, variable: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as exc:
            raise StartError(
                f"cannot listen on {host}:{port} ({exc}). Stop what uses it, or set {setting} "
                f"in llmis.toml or {variable} to another port."
            ) from exc


def _answers_ping(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
