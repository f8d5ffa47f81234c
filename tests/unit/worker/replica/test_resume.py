"""A job that dies between any two events goes on as if nothing had happened."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from shared.denylist.denylist import Denylist, OutputRules
from shared.denylist.rule import Rule
from shared.queue.lease import Lease
from shared.wire.events import Delta, Event, FinishReason
from shared.wire.job import Sampling, Tool
from tests.support.chat_jobs import chat_job
from tests.support.scripted_engine import ByteVocabulary
from worker.chat.output_parser import OutputParser, Reasoning
from worker.chat.tool_call_formats import CallSyntax
from worker.replica.attempt import Attempt
from worker.replica.event_builder import events_of
from worker.replica.resume import logged_progress, resume
from worker.sequence import Sequence, StepResult
from worker.text.completion import assembler_of, piece_in

_TEXTS = [
    'Grüße 😀<tool_call>\n{"name": "f", "arguments": {"a": "€ \\"x\\""}}\n</tool_call>',
    "<think>\nhmm, 12</think>\n\nSo: STO, and on",
    "text that ends by a STOP string, which is cut",
    "half a character and then STO",
]
_VOCABULARY = ByteVocabulary()


_NO_RULES = None
_MASKS = Denylist(
    [
        Rule(name="a", action="mask", literals=["ÜSSE 😀", "name", "by a"]),
        Rule(name="b", action="mask", regex=r"\b12|char\w*er", max_chars=12),
    ]
).on_output("m")
_CUTS = Denylist(
    [
        Rule(name="a", action="mask", literals=["ex", "alf"]),
        Rule(name="b", action="truncate", literals=["arguments", "and on", "character and"]),
        Rule(name="c", action="tag", literals=["t"]),
    ]
).on_output("m")
_HOLDS = Denylist(
    [
        Rule(name="a", action="mask", literals=["text that ends in tears", "half a ton"]),
        Rule(name="b", action="truncate", regex="never+", max_chars=9),
    ]
).on_output("m")
"""They match nothing, and hold much back."""


def _new_run(attempt: int, rules: OutputRules | None = _NO_RULES) -> Attempt:
    job = chat_job(tools=[Tool("f")])
    sequence = Sequence(("j", 0), [1], 10_000, Sampling(), stop=["STOP"], rules=rules)
    run = Attempt(job, attempt, [sequence], rules=rules)
    run.parsers[0] = OutputParser(
        ("j", 0),
        calls=CallSyntax.HERMES,
        tools=job.tools,
        reasoning=Reasoning("<think>", "</think>"),
        starts_in_reasoning=False,
        is_parallel=True,
    )
    return run


def _go(run: Attempt, tokens: list[int]) -> list[Event]:
    """What an engine and the publisher make of the tokens behind those that are known."""
    sequence = run.sequences[0]
    assembler, _ = assembler_of(_VOCABULARY, sequence)
    events: list[Event] = []
    for token in tokens[len(sequence.produced) :]:
        text = assembler.push(piece_in(_VOCABULARY, sequence, token))
        step = StepResult(("j", 0), text, [token], filtered=assembler.report())
        if assembler.is_stopped:
            step.finish_reason = assembler.reason
        events += [event for _, event in events_of([(run, step)])]
        if assembler.is_stopped:
            return events
    end = StepResult(("j", 0), assembler.finish(), [], FinishReason.STOP)
    end.finish_reason = assembler.reason
    return events + [event for _, event in events_of([(run, end)])]


def _received(events: list[Event]) -> tuple[object, ...]:
    deltas = [event for event in events if isinstance(event, Delta)]
    assert [event.seq for event in events] == list(range(len(events)))
    return (
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        "".join(piece.arguments for delta in deltas for piece in delta.tool_calls),
        [piece.id for delta in deltas for piece in delta.tool_calls if piece.id],
        deltas[-1].finish_reason,
    )


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(_TEXTS),
    st.lists(st.integers(0, 200), max_size=4),
    st.sampled_from([_NO_RULES, _MASKS, _CUTS, _HOLDS]),
)
def test_a_job_goes_on_wherever_it_was_cut(
    text: str, cuts: list[int], rules: OutputRules | None
) -> None:
    tokens = list(text.encode())
    undisturbed = _received(_go(_new_run(0, rules), tokens))
    log: list[Event] = []
    for attempt, cut in enumerate([*cuts, 10_000]):
        progress = logged_progress(log)
        run = _new_run(attempt, rules)
        run.next_seq = progress.num_events
        resume(run, progress, _VOCABULARY)
        if run.ended:
            break
        log += _go(run, tokens)[:cut]
    assert _received(log) == undisturbed


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(_TEXTS),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([_NO_RULES, _HOLDS])), max_size=4),
)
def test_the_next_replica_may_have_other_rules(
    text: str, cuts: list[tuple[int, OutputRules | None]]
) -> None:
    """What is out stays out, what was held back comes, whoever had held it."""
    tokens = list(text.encode())
    undisturbed = _received(_go(_new_run(0), tokens))
    log: list[Event] = []
    for attempt, (cut, rules) in enumerate([*cuts, (10_000, _NO_RULES)]):
        progress = logged_progress(log)
        run = _new_run(attempt, rules)
        run.next_seq = progress.num_events
        resume(run, progress, _VOCABULARY)
        if run.ended:
            break
        log += _go(run, tokens)[:cut]
    assert _received(log) == undisturbed


def test_the_reasoning_of_choices_that_an_earlier_attempt_has_ended_counts() -> None:
    def new_parser() -> OutputParser:
        return OutputParser(("j", 0), reasoning=Reasoning("<think>", "</think>"))

    run = Attempt(chat_job(), 1, [Sequence(("j", i), [1], 99, Sampling()) for i in range(3)])
    for sequence in run.sequences:
        sequence.new_parser = new_parser
    whole, begun = list(b"<think>hm</think>yes"), list(b"<think>h")
    log: list[Event] = [
        Delta(0, 0, 0, "yes", whole, FinishReason.STOP, "hm"),
        Delta(1, 0, 1, "", begun, None, "h"),
    ]
    resume(run, logged_progress(log), _VOCABULARY)
    assert run.usage().reasoning_tokens == len("<think>hm") + len("<think>h")
    assert Attempt(chat_job(), 0, []).usage().reasoning_tokens is UNSET


def test_only_deaths_with_the_job_in_the_engine_count() -> None:
    lease = Lease("a")
    lease = lease.succeeded_by("b", num_events=0, num_tokens=0)
    assert (lease.attempt, lease.num_fruitless) == (1, 0), "it was only waiting there"
    lease = lease.succeeded_by("c", num_events=1, num_tokens=0)
    lease = lease.succeeded_by("d", num_events=2, num_tokens=0)
    assert lease.num_fruitless == 2
    lease = lease.succeeded_by("e", num_events=9, num_tokens=7)
    assert (lease.attempt, lease.num_fruitless) == (4, 0), "there was a token in between"
