"""`llmis complete`: completes one prompt on stdout."""

import contextlib
import sys
from typing import Any

import click

from cli.answer_text import pieces
from cli.client import ServiceClient, choose_model
from cli.options import client_option, sampling_options
from cli.text import harmless


@click.command(short_help="Complete a text.")
@click.argument("prompt")
@sampling_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="[default: 16, the API's]")
@client_option
def complete(client: ServiceClient, prompt: str, model: str | None, **given: Any) -> None:
    """Complete PROMPT; "-" reads it from stdin.

    A pipe gets the model's text unchanged. On a terminal its control characters are made
    visible.
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
        # The shell's prompt, or an error, starts on a line of its own.
        if is_terminal and not last.endswith("\n"):
            sys.stdout.write("\n")
