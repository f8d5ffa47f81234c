"""Tables and JSON on stdout. Text of a service or a model is never read as markup."""

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.text import one_line

_PIPE_WIDTH = 10_000
"""Columns. A line in a pipe is a record and is never wrapped."""
_STATE_STYLES = {
    "ready": "green",
    "ok": "green",
    "loading": "yellow",
    "unloading": "yellow",
    "draining": "yellow",
    "failed": "red",
    "not ready": "red",
}


def console(stream: TextIO | None = None) -> Console:
    """A console with colour and animation on a terminal only."""
    stream = stream or sys.stdout
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=is_terminal,
        width=None if is_terminal else _PIPE_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )


def print_json(raw: Any) -> None:
    # Escaped to ASCII, so that no control character reaches the terminal.
    click.echo(json.dumps(raw, indent=2))


def state_text(state: str, rest: str = "") -> Text:
    text = Text(one_line(state), style=_STATE_STYLES.get(state, ""))
    return text.append(f" {one_line(rest)}", style="default") if rest else text


def progress_text(stage: str, fraction: float) -> str:
    """`(reading weights 42 %)`"""
    share = f"{100 * fraction:.0f} %"
    return f"({stage} {share})" if stage else f"({share})"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], empty: str) -> None:
    """Print a table, or `empty` to stderr if it has no rows. Columns named `…>` align right."""
    if not rows:
        click.echo(empty, err=True)
        return
    target = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        title = column.removesuffix(">")
        table.add_column(title, justify="right" if title != column else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row))
    target.print(table)
