"""ExLlamaV2: who is let into the batch, by slots, by pages, and by what the batch still reads."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import EngineError, InvalidRequest
from shared.wire.job import Sampling
from tests.support.exl2_engine import admit, make_engine, run_all, running, step_until
from tests.support.exl2_folder import ids
from tests.support.fake_exllamav2 import World
from tests.support.loop_sink import make_run
from worker.engines.exllamav2.pages import PAGE_TOKENS, PageLedger, demand
from worker.sequence import Sequence, Speculation


def _sequence(name: str, num_prompt: int, max_tokens: int = 5, index: int = 0) -> Sequence:
    prompt = ids(name * num_prompt)[:num_prompt]
    return Sequence((name, index), prompt, max_tokens, Sampling())


def test_a_job_that_does_not_fit_waits_and_does_not_fail(exl2: World, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        exl2.texts[name] = ids(name * 900)
    engine = make_engine(tmp_path, cache_tokens=2048)  # 8 pages for 4 slots
    runs = [make_run(n, prompt=ids(n * 300), max_tokens=900) for n in ("a", "b", "c")]
    with running(engine) as (loop, sink):
        for run in runs:
            loop.submit(run)
        loop.start()
        sink.wait_for_text("a")
        assert engine.free_slots == 3, "there are slots, but no pages"
        assert loop.num_waiting == 2
        sink.wait_for_ends(3)
    assert [sink.text(n) for n in ("a", "b", "c")] == ["a" * 900, "b" * 900, "c" * 900]


def test_the_generator_never_holds_a_job_back_that_the_ledger_let_in(
    exl2: World, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path, cache_tokens=2048, slots=8)
    for i in range(30):
        sequence = _sequence(f"{i % 5}", 100 + 130 * (i % 7), max_tokens=20 + 40 * (i % 5), index=i)
        step_until(engine, lambda seen, s=sequence: admit(engine, s))
        engine.step()
        assert not exl2.generators[0].pending_jobs


def test_choices_share_the_pages_of_their_prompt(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, cache_tokens=2048, slots=8)
    prompt = ids("p" * 1200)
    run = make_run("j", num_choices=4, prompt=prompt, max_tokens=50)
    sink = run_all(engine, run)  # 4 full pages + 1 each = 8, where 20 were needed unshared
    assert sink.end("j").usage.prompt_tokens == 1200
    assert sink.end("j").usage.cached_tokens == 0, "what the job itself has put there"
    again = run_all(engine, make_run("j", num_choices=2, prompt=prompt))
    assert again.end("j").usage.cached_tokens == 1024
    for i in range(4):
        engine.submit(Sequence(("k", i), prompt, 50, Sampling()))
    assert engine.free_slots == 4
    assert not engine.can_admit(Sequence(("k", 4), prompt, 50, Sampling()))


def test_what_can_never_fit_is_a_clear_error(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    too_long = _sequence("a", 2000, max_tokens=100)
    with pytest.raises(InvalidRequest, match="exceed the context of 2048"):
        engine.check(too_long)
    engine._ledger.num_pages = 4
    large = _sequence("b", 1000, max_tokens=100)
    assert engine.can_admit(large), "so that it is told, and does not wait for ever"
    with pytest.raises(InvalidRequest, match="needs 1280 tokens of KV cache; the model has 1024"):
        engine.submit(large)


@pytest.mark.parametrize("token", [-1, 10_000])
def test_token_ids_outside_of_the_vocabulary_never_reach_the_generator(
    exl2: World, tmp_path: Path, token: int
) -> None:
    engine = make_engine(tmp_path)
    for sequence in (
        Sequence(("a", 0), [5, token], 5, Sampling()),
        Sequence(("a", 0), [5], 5, Sampling(logit_bias={token: 1.0})),
    ):
        with pytest.raises(InvalidRequest, match="0 to 265"):
            engine.submit(sequence)
    assert not exl2.jobs


def test_one_job_that_cannot_be_enqueued_fails_alone(exl2: World, tmp_path: Path) -> None:
    exl2.enqueue_errors["bad"] = AssertionError("Job requires 9 pages (only 4 available)")
    for name in ("a", "b"):
        exl2.texts[name] = ids("fine")
    sink = run_all(make_engine(tmp_path), make_run("a"), make_run("bad"), make_run("b"))
    assert isinstance(sink.error("bad"), EngineError)
    assert "requires 9 pages" in sink.error("bad").message
    assert len(sink.of("bad")) == 1, "it never started"
    assert sink.text("a") == sink.text("b") == "fine"


# -- reading prompts while others stream -----------------------------------------------------


def test_long_prompts_are_read_two_at_a_time_and_in_small_pieces_while_streams_run(
    exl2: World, tmp_path: Path
) -> None:
    exl2.texts["s"] = ids("s" * 500)
    engine = make_engine(tmp_path, context_length=8192)
    assert admit(engine, _sequence("s", 3, max_tokens=400))
    step_until(engine, lambda seen: any(r.text for r in seen))
    assert admit(engine, _sequence("x", 3000))
    assert admit(engine, _sequence("z", 3000))
    assert not admit(engine, _sequence("y", 3000)), "its turn comes when x is read"
    for _ in range(5):
        assert any(r.key == ("s", 0) and r.token_ids for r in engine.step()), "s goes on"
    pieces = [n for name, n in exl2.generators[0].chunks if name == "x"]
    assert pieces == [512] * 5
    step_until(engine, lambda seen: any(r.key == ("x", 0) and r.token_ids for r in seen))
    assert admit(engine, _sequence("y", 3000))


def test_nobody_streams_so_a_prompt_is_read_in_large_pieces(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, context_length=8192)
    assert admit(engine, _sequence("x", 5000))
    step_until(engine, lambda seen: any(r.token_ids for r in seen))
    assert exl2.generators[0].chunks == [("x", 2048), ("x", 2048), ("x", 903)]


def test_short_prompts_are_read_eight_at_a_time_while_streams_run(
    exl2: World, tmp_path: Path
) -> None:
    exl2.texts["s"] = ids("s" * 500)
    engine = make_engine(tmp_path, slots=16)
    assert admit(engine, _sequence("s", 3, max_tokens=400))
    step_until(engine, lambda seen: any(r.text for r in seen))
    assert [admit(engine, _sequence(name, 100)) for name in "abcdefghi"] == [True] * 8 + [False]
    engine.step()
    assert admit(engine, _sequence("i", 100))


def test_nobody_waits_so_all_that_come_are_read_at_once(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, slots=16, context_length=4096)
    assert all(admit(engine, _sequence(name, 2000)) for name in "abcdefghijklmnop")
    engine.step()
    assert len(exl2.generators[0].chunks) == 16
    for key in list(engine._running):
        engine.cancel(key)
    taken = [admit(engine, _sequence(name, 4000)) for name in "abcdefghij"]
    assert taken == [True] * 8 + [False] * 2, "a step must end within seconds"


def test_cancelling_while_a_prompt_is_read_frees_its_pages(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, context_length=8192, cache_tokens=8192)
    assert admit(engine, _sequence("x", 7000, max_tokens=1000))
    engine.step()
    assert engine._running[("x", 0)].is_reading
    assert not admit(engine, _sequence("y", 7000, max_tokens=1000))
    engine.cancel(("x", 0))
    assert not exl2.generators[0].active_jobs
    assert admit(engine, _sequence("y", 7000, max_tokens=1000))


# -- the arithmetic --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "draft", "shareable", "own"),
    [
        (1, 1, 0, 0, 1),
        (256, 1, 0, 0, 2),  # the page with the last prompt token is never shared
        (257, 1, 0, 1, 1),
        (257, 255, 0, 1, 1),
        (257, 255, 1, 1, 2),  # a guess beyond the end needs a place too
        (1000, 1000, 0, 3, 5),
    ],
)
def test_pages_of_a_sequence(
    num_prompt: int, max_tokens: int, draft: int, shareable: int, own: int
) -> None:
    wanted = demand([7] * num_prompt, max_tokens, draft)
    assert (len(wanted.shareable), wanted.own_pages) == (shareable, own)


def test_a_page_is_equal_only_after_equal_text() -> None:
    one = demand([1] * 256 + [2] * 257, 1, 0).shareable
    other = demand([3] * 256 + [2] * 257, 1, 0).shareable
    assert one[0] != other[0]
    assert one[1] != other[1]


_prompts = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 1500), st.integers(1, 600)), max_size=12
)


@given(_prompts, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_ledger_gives_back_what_it_took(wanted: list[tuple[int, int, int]], chance) -> None:
    ledger = PageLedger(1000)
    held = {}
    for i, (token, num_prompt, max_tokens) in enumerate(wanted):
        key = ("j", i)
        held[key] = demand([token] * num_prompt, max_tokens, 0)
        ledger.reserve(key, held[key])
        distinct = {digest for d in held.values() for digest in d.shareable}
        assert 1000 - ledger.free_pages == len(distinct) + sum(d.own_pages for d in held.values())
        if chance.random() < 0.4:
            gone = chance.choice(list(held))
            ledger.release(gone)
            del held[gone]
    for key in list(held):
        ledger.release(key)
    assert ledger.free_pages == 1000


def test_with_guesses_the_context_is_shorter_by_them(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, context_length=1024, speculation=Speculation(num_tokens=5))
    assert engine.context_length == 1019
    exl2.texts["j"] = ids("x" * 1024)
    sink = run_all(engine, make_run("j", prompt=ids("p" * 519), max_tokens=500))
    assert len(sink.tokens("j")) == 500
    assert exl2.jobs[0].kv_position < 1024 == exl2.configs[0].max_seq_len
    assert engine._ledger.num_pages * PAGE_TOKENS == 4 * 1024
