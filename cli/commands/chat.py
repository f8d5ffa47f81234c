"""`llmis chat`: a conversation in the terminal."""

import contextlib
import sys
from typing import Any

import click

from cli.api import choose_model
from cli.client import Client
from cli.errors import CliError
from cli.generation import pieces
from cli.options import client_option, sampling_options
from cli.text import harmless, one_line

_PROMPT = "> "
_LEAVE = ("/exit", "/quit")
_CLEAR = "/clear"
_HINT = "Ctrl-C stops an answer, /clear forgets what was said, Ctrl-D or /exit leaves."


@click.command(short_help="Talk to a model.")
@sampling_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="[default: to the context's end]")
@click.option("--system", metavar="TEXT", help="What the model is told before all else.")
@client_option
def chat(client: Client, model: str | None, system: str | None, **given: Any) -> None:
    """Talk to a model. It is sent the whole conversation each time.

    Ctrl-C stops an answer, /clear forgets what was said, Ctrl-D or /exit leaves. From a pipe
    each line is a question.
    """
    chosen = choose_model(client, model, "chat")
    conversation = Conversation(client, {"model": chosen, **given}, system)
    if sys.stdin.isatty():
        click.echo(f"{one_line(chosen)}. {_HINT}")
        _talk(conversation)
    else:
        for line in sys.stdin:
            if not conversation.obey(line):
                break


def _talk(conversation: "Conversation") -> None:
    """Read and answer until the user leaves; an error ends an answer, not the conversation."""
    _enable_line_editing()
    while True:
        try:
            line = input(_PROMPT)
        except KeyboardInterrupt:
            click.echo(f"\n{_HINT}")
            continue
        except EOFError:
            click.echo()
            return
        try:
            if not conversation.obey(line):
                return
        except KeyboardInterrupt:
            click.echo("[stopped]")
        except CliError as exc:
            exc.show()


def _enable_line_editing() -> None:
    # The import alone gives `input` its editing and history; some Pythons are built without.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


class Conversation:
    """What has been said, and the next answer. `body` has the model and how to sample."""

    def __init__(self, client: Client, body: dict[str, Any], system: str | None = None) -> None:
        self._client = client
        self._body = body
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = [*self._opening]

    def obey(self, line: str) -> bool:
        """Answer a line, or do what it commands; False = leave. Raises CliError."""
        question = line.strip()
        if question in _LEAVE:
            return False
        if question == _CLEAR:
            self.messages = [*self._opening]
            click.echo("Forgotten.")
        elif question:
            self._answer(question)
        return True

    def _answer(self, question: str) -> None:
        """Print the answer as it comes. What came of one that breaks off is remembered too."""
        messages = [*self.messages, {"role": "user", "content": question}]
        body = {**self._body, "messages": messages}
        said: list[str] = []
        try:
            with contextlib.closing(pieces(self._client, "/v1/chat/completions", body)) as texts:
                for text in texts:
                    said.append(text)
                    sys.stdout.write(harmless(text))
                    sys.stdout.flush()
        finally:
            # A question without an answer would stand before the next one: it is dropped.
            if said:
                answer = {"role": "assistant", "content": "".join(said)}
                self.messages = [*messages, answer]
                sys.stdout.write("\n")
                sys.stdout.flush()
