"""Runs the checks and prints their findings."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from cli.address import environment, url_of
from cli.client import ServiceClient
from cli.doctor import installation, machine, service
from cli.doctor.finding import Finding, Severity, ok, problem
from cli.options import json_option, url_option
from cli.text import one_line
from shared.errors import SettingsError
from shared.settings.fields import Settings
from shared.settings.load import load as load_settings

_ANSWER_TIMEOUT_S = 10.0
"""Another program may listen on the service's port and never answer."""
_COLORS = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.PROBLEM: "red"}


@click.command(short_help="Find faults of this installation.")
@url_option
@json_option
def doctor(url: str | None, is_json: bool) -> None:
    """Find faults of this installation, and say how to fix them.

    Exit status 1 if there is a problem; a warning is not one.
    """
    named = _client(url) if url else None
    findings = []
    for finding in _findings(named):
        findings.append(finding)
        if not is_json:
            _show(finding)
    if is_json:
        click.echo(json.dumps(msgspec.to_builtins(findings), indent=2))
    if any(finding.outcome is Severity.PROBLEM for finding in findings):
        raise click.exceptions.Exit(1)


def _client(url: str) -> ServiceClient:
    try:
        return ServiceClient(url, answer_timeout_s=_ANSWER_TIMEOUT_S)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--url") from exc


def _findings(named: ServiceClient | None) -> Iterator[Finding]:
    """`named`: the service of --url. That of the settings may be another one, or unknown."""
    yield installation.check_python()
    yield installation.check_requirements()
    environ = environment()
    client = named
    try:
        settings = load_settings(environ)
    except SettingsError as exc:
        yield problem("settings", str(exc), "correct it; docs/settings.md lists the settings")
    else:
        path = Path(environ.get("LLMIS_CONFIG", "llmis.toml")).resolve()
        yield ok("settings", str(path) if path.exists() else "no file; the defaults are used")
        yield from _findings_of(settings)
        client = named or _client(url_of(settings))
    if client is not None:
        yield from service.check_service(client)


def _findings_of(settings: Settings) -> Iterator[Finding]:
    is_running = service.is_llmis(_client(url_of(settings)))
    yield from installation.check_folders(settings)
    yield from installation.check_weights(settings)
    yield machine.check_cores(settings)
    yield machine.check_memory(settings, is_running=is_running)
    yield from service.check_ports(settings, is_running=is_running)
    yield service.check_redis(settings)
    if settings.redis_url:
        yield from service.check_clocks(settings)


def _show(finding: Finding) -> None:
    outcome = click.style(f"{finding.outcome:<8}", fg=_COLORS[finding.outcome])
    remedy = f". To fix it: {one_line(finding.mend)}" if finding.mend else ""
    click.echo(f"{outcome} {one_line(finding.subject)}: {one_line(finding.text)}{remedy}")
