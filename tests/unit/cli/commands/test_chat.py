"""`llmis chat` from a pipe, and what makes text harmless. On a terminal: test_cli_terminal."""

import itertools

import pytest

from cli import text
from tests.support import fake_service
from tests.support.cli_answers import HOSTILE, chat_events, run
from tests.support.fake_service import FakeService, Reply

CHAT = "POST /v1/chat/completions"


def _roles(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def test_each_question_carries_what_was_said(fake: FakeService) -> None:
    fake.replies[CHAT] = Reply(events=chat_events("Pa", "ris."))
    result = run("chat", "--system", "Be brief.", "--temperature", "0", given="France?\n\nSpain?\n")
    assert (result.exit_code, result.stdout) == (0, "Paris.\nParis.\n")
    first, second = fake.bodies(CHAT)
    assert first["model"] == "counter"
    assert first["temperature"] == 0
    opening = [("system", "Be brief."), ("user", "France?")]
    assert _roles(first["messages"]) == opening
    rest = [("assistant", "Paris."), ("user", "Spain?")]
    assert _roles(second["messages"]) == opening + rest


def test_clear_forgets_all_but_the_system_s_message(fake: FakeService) -> None:
    fake.replies[CHAT] = Reply(events=chat_events("a"))
    run("chat", "--system", "s", "--model", "m", given="one\n/clear\ntwo\n/exit\nthree\n")
    bodies = fake.bodies(CHAT)
    assert len(bodies) == 2
    assert _roles(bodies[1]["messages"]) == [("system", "s"), ("user", "two")]


def test_a_line_that_only_looks_like_a_command_is_a_question(fake: FakeService) -> None:
    fake.replies[CHAT] = Reply(events=chat_events("a"))
    run("chat", given="/etc/passwd?\n")
    assert _roles(fake.bodies(CHAT)[0]["messages"]) == [("user", "/etc/passwd?")]


def test_what_the_model_writes_is_plain_text(fake: FakeService) -> None:
    fake.replies[CHAT] = Reply(events=chat_events(*HOSTILE))
    result = run("chat", given="x\n")
    assert result.stdout == "[red]x[/red] ␛]0;owned␇ \\u009b2J \\u202eexe.txt\n"


def test_an_error_ends_a_chat_from_a_pipe(fake: FakeService) -> None:
    fake.replies[CHAT] = fake_service.error("The model 'x' does not exist.", 404)
    result = run("chat", given="a\nb\n")
    assert (result.exit_code, result.stderr) == (1, "llmis: The model 'x' does not exist.\n")
    assert len(fake.bodies(CHAT)) == 1


# -- text ----------------------------------------------------------------------------------------


def test_no_control_character_but_newline_and_tab_passes() -> None:
    every = "".join(map(chr, range(0x3000)))
    passed = text.harmless(every)
    controls = {chr(code) for code in itertools.chain(range(0x20), range(0x7F, 0xA0))}
    assert set(passed) & controls == {"\n", "\t"}
    assert text.harmless("a\r\nb\rc") == "a\nbc"
    assert text.harmless("🇫🇷 👩\u200d💻 é") == "🇫🇷 👩\u200d💻 é"


def test_one_line_is_one_line() -> None:
    assert text.one_line(" a\n\tb\u2028c\x85d ") == "a b c d"


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB")),
        *((5 << 50, "5120.0 TiB"), (-1, "-1 B")),
    ],
)
def test_sizes(num_bytes: int, expected: str) -> None:
    assert text.size(num_bytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-3, "0s"), (59.9, "59s"), (60, "1m 00s"), (3600, "1h 00m"), (90_000, "1d 01h")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected
