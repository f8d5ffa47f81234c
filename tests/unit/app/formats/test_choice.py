"""What the choices of a job add up to."""

import math

import pytest

from app.formats.choice import Choice, best, share_echoes
from shared.wire.events import Delta, Echo, FinishReason, Logprob, TokenLogprobs

_END = TokenLogprobs(Logprob(2, -7.0, b"", b"</s>"), [], is_end=True)


def _choice(*logprobs: float, is_ended: bool = True) -> Choice:
    tokens = [TokenLogprobs(Logprob(5, logprob, b"x"), []) for logprob in logprobs]
    choice = Choice()
    ids, text = [5] * len(tokens), "x" * len(tokens)
    reason = FinishReason.STOP if is_ended else FinishReason.LENGTH
    choice.add(Delta(1, 0, 0, text, ids, reason, logprobs=tokens + ([_END] if is_ended else [])))
    return choice


def test_the_best_choices_are_the_surest_ones() -> None:
    choices = [_choice(-3.0, is_ended=False), _choice(-0.1, is_ended=False), _choice(-1.0, -2.0)]
    assert best(choices, 3, 1) == [choices[1]]
    assert best(choices, 3, 2) == [choices[1], choices[0]]
    assert best(choices * 2, 3, 1) == [choices[1]] * 2, "of each prompt"


def test_an_empty_choice_is_as_sure_as_its_end_was() -> None:
    empty, said = _choice(), _choice(-1.0, is_ended=False)
    assert empty.mean_logprob == -7.0
    assert best([empty, said], 2, 1) == [said]


def test_a_choice_without_a_token_is_the_last() -> None:
    nothing, said = Choice(), _choice(-50.0)
    assert nothing.mean_logprob == -math.inf
    assert best([nothing, said], 2, 1) == [said]


@pytest.mark.parametrize("num_made", [1, 2])
def test_the_echo_of_a_prompt_is_that_of_all_its_choices(num_made: int) -> None:
    choices = [Choice() for _ in range(2 * num_made)]
    echoes = [Echo(0, 0, 0, "a"), Echo(1, 0, num_made, "b")]
    for echo in echoes:
        choices[echo.index].add(echo)
    share_echoes(choices, num_made)
    assert [choice.echo for choice in choices] == [echoes[0]] * num_made + [echoes[1]] * num_made
