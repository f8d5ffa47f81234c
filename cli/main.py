"""The command `llmis`. A module is imported when its command is wanted, not before.

So `llmis doctor` runs where other packages are missing, and no command waits for the imports
of another.
"""

import importlib
import io
import sys
from typing import Any

import click

from shared.version import VERSION

_COMMANDS = {
    "up": "cli.start:up",
    "web": "cli.start:web",
    "agent": "cli.start:agent",
    "flower": "cli.start:flower",
    "status": "cli.status:status",
    "ps": "cli.listings:ps",
    "nodes": "cli.listings:nodes",
    "models": "cli.models:models",
    "keys": "cli.keys:keys",
    "restart": "cli.restart:restart",
    "chat": "cli.chat:chat",
    "complete": "cli.complete:complete",
    "check": "cli.check:check",
    "doctor": "cli.doctor.command:doctor",
}
_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


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
    """An OpenAI-compatible LLM service: start it, look at it, talk to it."""


def main() -> None:
    # Bytes that are no text, and characters that a terminal does not know, are shown as "?".
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    cli(prog_name="llmis")
