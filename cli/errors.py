"""The errors that end a command of `llmis`.

    CliError            one line on stderr, exit status 1
    ├── Unreachable     no connection, or no answer in time
    └── ServiceError    the service answered with an error, or not in its format

Wrong usage ends with click's own errors and exit status 2.
"""

from typing import IO, Any

import click

from cli.text import one_line


class CliError(click.ClickException):
    """Shown as `llmis: message`. The message may quote the service or a model."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"llmis: {one_line(self.message)}", file=file, err=file is None)


class Unreachable(CliError):
    pass


class ServiceError(CliError):
    def __init__(self, message: str, status: int | None = None, param: str | None = None) -> None:
        """`status`: HTTP status; None if the error came later in the answer. `param`: the
        parameter that is not valid."""
        super().__init__(message)
        self.status = status
        self.param = param
