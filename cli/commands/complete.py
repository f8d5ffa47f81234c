"""`llmis complete`: one prompt, its continuation on stdout."""

import contextlib
import sys
from typing import Any

import click

from cli.api import choose_model
from cli.client import Client
from cli.generation import pieces
from cli.options import client_option, sampling_options
from cli.text import harmless


@click.command(short_help="Continue a text.")
@click.argument("prompt")
@sampling_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="[default: 16, the API's]")
@client_option
def complete(client: Client, prompt: str, model: str | None, **given: Any) -> None:
    """Continue PROMPT; "-" reads it from stdin.

    Into a pipe goes the model's text as it is. A terminal gets it with its control characters
    made visible.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    body = {"model": choose_model(client, model, "completion"), "prompt": prompt, **given}
    is_terminal = sys.stdout.isatty()
    last = "\n"
    try:
        with contextlib.closing(pieces(client, "/v1/completions", body)) as texts:
            for last in texts:
                sys.stdout.write(harmless(last) if is_terminal else last)
                sys.stdout.flush()
    finally:
        # What comes next, the shell's prompt or an error, starts a line of its own.
        if is_terminal and not last.endswith("\n"):
            sys.stdout.write("\n")
