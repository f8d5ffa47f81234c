"""Runs the checks and prints what they find."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from cli.address import environment, url_of
from cli.client import Client
from cli.doctor import installation, machine, service
from cli.doctor.finding import Finding, Outcome, ok, problem
from cli.options import json_option, url_option
from cli.text import one_line
from shared import settings as settings_module
from shared.errors import SettingsError
from shared.settings import Settings

_ANSWER_TIMEOUT_S = 10.0
"""What listens on the service's port may be anything, and silent."""
_COLORS = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.PROBLEM: "red"}


@click.command(short_help="Say what is wrong with this installation.")
@url_option
@json_option
def doctor(url: str | None, is_json: bool) -> None:
    """Say what is wrong with this installation, and how to mend it.

    Exit status 1 when there is a problem. A warning is none.
    """
    named = _client(url) if url else None
    findings = []
    for finding in _findings(named):
        findings.append(finding)
        if not is_json:
            _show(finding)
    if is_json:
        click.echo(json.dumps(msgspec.to_builtins(findings), indent=2))
    if any(finding.outcome is Outcome.PROBLEM for finding in findings):
        raise click.exceptions.Exit(1)


def _client(url: str) -> Client:
    try:
        return Client(url, answer_timeout_s=_ANSWER_TIMEOUT_S)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--url") from exc


def _findings(named: Client | None) -> Iterator[Finding]:
    """`named` is the service of --url; the settings' own may be another, or unknown."""
    yield installation.check_python()
    yield installation.check_requirements()
    environ = environment()
    client = named
    try:
        settings = settings_module.load(environ)
    except SettingsError as exc:
        yield problem("settings", str(exc), "correct it; docs/settings.md has them all")
    else:
        path = Path(environ.get("LLMIS_CONFIG", "llmis.toml")).resolve()
        yield ok("settings", str(path) if path.exists() else "no file; the defaults hold")
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


def _show(finding: Finding) -> None:
    outcome = click.style(f"{finding.outcome:<8}", fg=_COLORS[finding.outcome])
    click.echo(f"{outcome} {one_line(finding.subject)}: {one_line(finding.text)}{_mend(finding)}")


def _mend(finding: Finding) -> str:
    return f". To mend it: {one_line(finding.mend)}" if finding.mend else ""
