"""The command `llmis`. The module of a command is imported when the command is used.

`llmis doctor` thus runs where other packages are missing, and no command waits for the imports
of another.
"""

import importlib
import io
import sys
from typing import Any

import click

from shared.version import VERSION

_COMMANDS = {
    "up": "cli.commands.start:up",
    "web": "cli.commands.start:web",
    "agent": "cli.commands.start:agent",
    "flower": "cli.commands.start:flower",
    "status": "cli.commands.status:status",
    "ps": "cli.commands.listings:ps",
    "nodes": "cli.commands.listings:nodes",
    "models": "cli.commands.models:models",
    "keys": "cli.commands.keys:keys",
    "restart": "cli.commands.restart:restart",
    "chat": "cli.commands.chat:chat",
    "complete": "cli.commands.complete:complete",
    "check": "cli.commands.check:check",
    "doctor": "cli.doctor.command:doctor",
}
_INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells: 128 + SIGINT."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module_name, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command), "the table names commands"
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(err=True)
            raise click.exceptions.Exit(_INTERRUPTED) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="llmis")
def cli() -> None:
    """An OpenAI-compatible LLM service: start it, inspect it, use it."""


def main() -> None:
    # Bytes that are not UTF-8, and characters unknown to the terminal, are shown as "?".
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    cli(prog_name="llmis")
