"""`llmis chat`: a conversation in the terminal."""

import contextlib
import sys
from typing import Any

import click

from cli.answer_text import pieces
from cli.client import ServiceClient, choose_model
from cli.errors import CliError
from cli.options import client_option, sampling_options
from cli.text import harmless, one_line

_PROMPT = "> "
_LEAVE = ("/exit", "/quit")
_CLEAR = "/clear"
_HINT = "Ctrl-C stops an answer, /clear starts over, Ctrl-D or /exit leaves."


@click.command(short_help="Talk to a model.")
@sampling_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="[default: to the context's end]")
@click.option("--system", metavar="TEXT", help="The system message.")
@client_option
def chat(client: ServiceClient, model: str | None, system: str | None, **given: Any) -> None:
    """Talk to a model. Each request holds the whole conversation.

    Ctrl-C stops an answer, /clear starts over, Ctrl-D or /exit leaves. From a pipe each line is
    a question.
    """
    chosen = choose_model(client, model, "chat")
    conversation = Conversation(client, {"model": chosen, **given}, system)
    if sys.stdin.isatty():
        click.echo(f"{one_line(chosen)}. {_HINT}")
        _talk(conversation)
    else:
        for line in sys.stdin:
            if not conversation.handle(line):
                break


def _talk(conversation: "Conversation") -> None:
    """Read and answer until the user leaves. An error ends the answer, not the conversation."""
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
            if not conversation.handle(line):
                return
        except KeyboardInterrupt:
            click.echo("[stopped]")
        except CliError as exc:
            exc.show()


def _enable_line_editing() -> None:
    # The import gives `input` editing and history. Some builds of Python lack the module.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


class Conversation:
    """The messages so far. `body`: the model and the sampling parameters."""

    def __init__(
        self, client: ServiceClient, body: dict[str, Any], system: str | None = None
    ) -> None:
        self._client = client
        self._body = body
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = [*self._opening]

    def handle(self, line: str) -> bool:
        """Answer a line, or execute its command. Returns False to leave. Raises CliError."""
        question = line.strip()
        if question in _LEAVE:
            return False
        if question == _CLEAR:
            self.messages = [*self._opening]
            click.echo("Cleared.")
        elif question:
            self._answer(question)
        return True

    def _answer(self, question: str) -> None:
        """Print the answer as it arrives. An incomplete answer is kept in the conversation, too."""
        messages = [*self.messages, {"role": "user", "content": question}]
        body = {**self._body, "messages": messages}
        parts: list[str] = []
        try:
            with contextlib.closing(pieces(self._client, "/v1/chat/completions", body)) as texts:
                for text in texts:
                    parts.append(text)
                    sys.stdout.write(harmless(text))
                    sys.stdout.flush()
        finally:
            # Templates want a question and an answer in turn: an unanswered question is dropped.
            if parts:
                answer = {"role": "assistant", "content": "".join(parts)}
                self.messages = [*messages, answer]
                sys.stdout.write("\n")
                sys.stdout.flush()
