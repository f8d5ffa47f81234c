"""Shows the progress of a load or an unload: a bar on a terminal, else a line per stage.

The progress goes to stderr, the outcome to stdout.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cli import output
from cli.client import ServiceClient, view
from cli.errors import CliError, ServiceError
from cli.text import duration, one_line
from shared.admin_api import Operation

_END_STATES = {"ready", "unloaded", "failed"}


def begin(client: ServiceClient, path: str, body: dict[str, Any], *, is_json: bool) -> None:
    """Start an operation and return. Raises CliError."""
    raw = client.post(path, body)
    if is_json:
        output.print_json(raw)
        return
    started = view(raw, Operation)
    click.echo(f"{one_line(started.model)}: {one_line(started.state)} ({one_line(started.id)})")


def follow(client: ServiceClient, path: str, body: dict[str, Any], *, is_json: bool) -> None:
    """Start an operation and show it to its end. Raises CliError, also if the operation fails."""
    started_at = time.monotonic()
    try:
        raw = _last_state(client, path, body, is_quiet=is_json)
    except KeyboardInterrupt:
        click.echo(
            "\nllmis: the operation continues; `llmis models list` shows its state", err=True
        )
        raise
    last = view(raw, Operation)
    if is_json:
        output.print_json(raw)
    if last.state == "failed":
        raise CliError(last.error.message if last.error else f"{last.model}: failed")
    if not is_json:
        took = duration(time.monotonic() - started_at)
        click.echo(f"{one_line(last.model)} is {one_line(last.state)} after {took}")


def _last_state(client: ServiceClient, path: str, body: dict[str, Any], *, is_quiet: bool) -> Any:
    raw = None
    stream = client.stream(path, {**body, "stream": True})
    with contextlib.closing(stream) as states, _display(is_quiet) as show:
        for raw in states:
            show(view(raw, Operation))
    if raw is None or view(raw, Operation).state not in _END_STATES:
        raise ServiceError("the service broke off its report; `llmis models list` shows the state")
    return raw


@contextlib.contextmanager
def _display(is_quiet: bool) -> Iterator[Callable[[Operation], None]]:
    """A function that shows a state."""
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("", total=1.0)
            yield lambda state: bar.update(
                task, description=_describe(state), completed=state.fraction
            )
    else:
        yield (lambda _state: None) if is_quiet else _Lines().show


def _bar() -> Progress:
    """A progress bar that is removed at the end."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=output.console(sys.stderr),
        transient=True,
    )


class _Lines:
    """Prints a line when the stage or the message changes, for logs."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, state: Operation) -> None:
        line = _describe(state)
        if line != self._last:
            click.echo(line, err=True)
        self._last = line


def _describe(state: Operation) -> str:
    # The reason of a failure is printed once, at the end.
    message = "" if state.state == "failed" else state.message
    parts = (state.model, state.stage or state.state, message)
    return ": ".join(one_line(part) for part in parts if part)
