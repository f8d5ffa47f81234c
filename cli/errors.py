"""How a command of `llmis` ends when it cannot do what it was asked.

    CliError            one line on stderr, exit status 1
    ├── Unreachable     nobody answers at the service's address
    └── ServiceError    the service answered with an error, or with something unknown

Wrong usage is click's own business: exit status 2.
"""

from typing import IO, Any

import click

from cli.text import one_line


class CliError(click.ClickException):
    """Shown as `llmis: message`; may quote what the service or a model said."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"llmis: {one_line(self.message)}", file=file, err=file is None)


class Unreachable(CliError):
    pass


class ServiceError(CliError):
    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; None when the answer had begun, or was not understood."""
