"""Following a load or an unload: a bar on a terminal, else a line a stage; then the outcome.

All of that but the outcome goes to stderr.
"""

import contextlib
import sys
import time
from typing import Any, Self

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cli import output
from cli.api import Operation, view
from cli.client import Client
from cli.errors import CliError, ServiceError
from cli.text import duration, one_line

_OVER = {"ready", "unloaded", "failed"}


def begin(client: Client, path: str, body: dict[str, Any], *, is_json: bool) -> None:
    """Begin an operation and return. Raises CliError."""
    raw = client.post(path, body)
    if is_json:
        output.print_json(raw)
        return
    begun = view(raw, Operation)
    click.echo(f"{one_line(begun.model)}: {one_line(begun.state)} ({one_line(begun.id)})")


def follow(client: Client, path: str, body: dict[str, Any], *, is_json: bool) -> None:
    """Begin an operation and show it to its end. Raises CliError, also when it fails."""
    started_at = time.monotonic()
    try:
        raw = _last_state(client, path, body, is_quiet=is_json)
    except KeyboardInterrupt:
        click.echo("\nllmis: it goes on without being watched: see `llmis models list`", err=True)
        raise
    last = view(raw, Operation)
    if is_json:
        output.print_json(raw)
    if last.state == "failed":
        raise CliError(last.error.message if last.error else f"{last.model}: failed")
    if not is_json:
        took = duration(time.monotonic() - started_at)
        click.echo(f"{one_line(last.model)} is {one_line(last.state)} after {took}")


def _last_state(client: Client, path: str, body: dict[str, Any], *, is_quiet: bool) -> Any:
    raw = None
    stream = client.stream(path, {**body, "stream": True})
    with contextlib.closing(stream) as states, _display(is_quiet) as display:
        for raw in states:
            display.show(view(raw, Operation))
    if raw is None or view(raw, Operation).state not in _OVER:
        raise ServiceError("the service broke off its report; see `llmis models list`")
    return raw


class _Display:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, state: Operation) -> None:
        pass


class _Lines(_Display):
    """A line whenever stage or message change, for logs."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, state: Operation) -> None:
        line = _describe(state)
        if line != self._last:
            click.echo(line, err=True)
        self._last = line


class _Bar(_Display):
    """A progress bar that is gone when it is done."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=output.console(sys.stderr),
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, state: Operation) -> None:
        self._progress.update(
            self._task, description=_describe(state), completed=state.fraction or 0.0
        )


def _describe(state: Operation) -> str:
    # Why it failed is said at the end, once.
    message = "" if state.state == "failed" else state.message
    parts = (state.model, state.stage or state.state, message)
    return ": ".join(one_line(part) for part in parts if part)


def _display(is_quiet: bool) -> _Display:
    if sys.stderr.isatty():
        return _Bar()
    return _Display() if is_quiet else _Lines()
