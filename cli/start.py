"""`llmis up` and `llmis agent`: the processes of the service, in the foreground."""

import os
import sys

import click

from cli.address import environment


@click.command(short_help="Start everything here, in the foreground.")
def up() -> None:
    """Start everything here, in the foreground; Ctrl-C stops it.

    Redis (unless REDIS_URL is set), the models of llmis.toml, the web tier and Flower.
    """
    os.environ.update(environment())
    # Of all commands this one alone needs Redis and what else the start takes.
    from cli import up as service

    sys.exit(service.main())


@click.command(short_help="Run this machine's agent, in the foreground.")
def agent() -> None:
    """Run this machine's agent, which starts and stops replicas, in the foreground."""
    sys.stdout.flush()
    # In place of this process: signals reach the agent itself.
    os.execve(sys.executable, [sys.executable, "-m", "worker.agent"], environment())  # noqa: S606
