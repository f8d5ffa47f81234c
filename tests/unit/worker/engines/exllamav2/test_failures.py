"""ExLlamaV2: what fails alone, what fails the batch, what ends the process."""

import logging
from pathlib import Path

import pytest
import torch

from shared.errors import EngineError, Quarantined, rebuild
from shared.wire.job import Sampling
from tests.support.exl2_engine import admit, make_engine, run_all, running
from tests.support.exl2_folder import ids
from tests.support.fake_exllamav2 import World
from tests.support.loop_sink import make_run
from worker.engines.base import EngineFatal
from worker.engines.exllamav2.failures import Quarantine, StepFailure, classify
from worker.engines.exllamav2.running_sequence import RunningSequence
from worker.sequence import Sequence


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            StepFailure.OUT_OF_MEMORY,
        ),
        (RuntimeError("CUDA error: out of memory"), StepFailure.OUT_OF_MEMORY),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), StepFailure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: device-side assert triggered"), StepFailure.DEVICE_LOST),
        (RuntimeError("CUDA error: an illegal memory access"), StepFailure.DEVICE_LOST),
        (torch.AcceleratorError("CUDA error: unknown error", 1), StepFailure.DEVICE_LOST),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), StepFailure.DEVICE_LOST),
        (RuntimeError("shape mismatch"), StepFailure.OTHER),
        (AssertionError(), StepFailure.OTHER),
        (KeyError("x"), StepFailure.OTHER),
    ],
)
def test_errors_are_told_apart(error: Exception, expected: StepFailure) -> None:
    assert classify(error) is expected


def test_the_cause_of_an_error_counts_too() -> None:
    error = RuntimeError("sampling failed")
    error.__cause__ = RuntimeError("CUDA error: device-side assert triggered")
    assert classify(error) is StepFailure.DEVICE_LOST


def test_a_failed_step_fails_who_was_active_and_the_waiting_go_on(
    exl2: World, tmp_path: Path
) -> None:
    exl2.texts |= {"active": ids("x" * 100), "waiting": ids("fine"), "later": ids("too")}
    exl2.errors[4] = IndexError("list index out of range")
    engine = make_engine(tmp_path, slots=1)
    first = exl2.generators[0]
    with running(engine) as (loop, sink):
        loop.submit(make_run("active", max_tokens=50))
        loop.submit(make_run("waiting", max_tokens=4))
        loop.start()
        sink.wait_for_ends(2)
        loop.submit(make_run("later", max_tokens=3))
        sink.wait_for_ends(1)
        assert not loop.is_wedged
    assert isinstance(sink.error("active"), EngineError)
    assert "list index out of range" in sink.error("active").message
    assert sink.text("waiting") == "fine"
    assert sink.text("later") == "too"
    assert len(exl2.generators) == 2, "a new generator on the loaded model"
    assert exl2.loads == ["one"]
    assert first.sampling_pool._shutdown and first.filter_pool._shutdown, "no thread is left"


def test_out_of_memory_lowers_the_batch_and_says_so(
    exl2: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(tmp_path, slots=8)
    for i in range(8):
        engine.submit(Sequence((f"j{i}", 0), ids("abc"), 50, Sampling(), ignore_eos=True))
    engine.step()
    exl2.errors[2] = torch.OutOfMemoryError("CUDA out of memory.")
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError, match="out of memory"):
        engine.step()
    assert "limited to 4" in caplog.text
    assert not engine.has_work
    assert engine.free_slots == 4
    assert exl2.generators[-1].max_batch_size == 4
    exl2.texts["next"] = ids("fine")
    assert run_all(engine, make_run("next", max_tokens=4)).text("next") == "fine"


def test_out_of_memory_with_one_sequence_lowers_the_piece_of_prompt(
    exl2: World, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path, context_length=8192)
    sizes = []
    for i in range(1, 4):
        exl2.errors[exl2.num_iterations + 1] = RuntimeError("CUDA out of memory")
        engine.submit(Sequence((f"j{i}", 0), ids(f"{i}" * 5000), 5, Sampling()))
        with pytest.raises(EngineError) as caught:
            engine.step()
        assert not isinstance(caught.value, EngineFatal)
        sizes.append(exl2.generators[-1].max_chunk_size)
    assert sizes == [1024, 512, 256]
    assert engine.free_slots == 4, "the batch is not to blame"


def test_a_cuda_error_ends_the_loop_with_the_reason(exl2: World, tmp_path: Path) -> None:
    exl2.errors[3] = RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
    with running(make_engine(tmp_path, slots=1)) as (loop, sink):
        loop.submit(make_run("active", max_tokens=50, ignore_eos=True))
        loop.submit(make_run("waiting"))
        loop.start()
        sink.wait_for_ends(2)
        loop.stop()
        assert loop.is_wedged
    assert "device-side assert triggered" in loop.fatal_reason
    assert "\n" not in loop.fatal_reason, "the agent reads a line"
    assert sink.error("waiting").code == "engine_error"
    assert len(exl2.generators) == 1


def test_failing_again_and_again_ends_the_process(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    raised = []
    for i in range(4):
        exl2.errors[exl2.num_iterations + 1] = RuntimeError(f"odd {i}")
        engine.submit(Sequence((f"j{i}", 0), ids(f"{i}"), 5, Sampling()))
        with pytest.raises(EngineError) as caught:
            engine.step()
        raised.append(type(caught.value))
    assert raised == [EngineError, EngineError, EngineError, EngineFatal]


def test_who_was_active_at_two_failures_is_refused_and_bystanders_are_acquitted(
    exl2: World, tmp_path: Path
) -> None:
    exl2.poisons["bad"] = exl2.poisons["bad-again"] = exl2.poisons["third"] = ValueError("poison")
    exl2.texts["other"] = ids("fine")
    engine = make_engine(tmp_path)
    poison = ids("drop table")
    bystander = Sequence(("other", 0), ids("hello"), 4, Sampling())
    for name in ("bad", "bad-again"):
        assert admit(engine, Sequence((name, 0), poison, 5, Sampling(seed=1)))
        assert admit(engine, bystander)
        with pytest.raises(EngineError, match="poison"):
            engine.step()
        if name == "bad":
            assert admit(engine, bystander)
            while engine.has_work:
                engine.step()
    with pytest.raises(Quarantined, match="2 times"):
        engine.submit(Sequence(("third", 0), poison, 5, Sampling(seed=2)))
    engine.submit(bystander)
    assert isinstance(rebuild(400, "request_quarantined", "m", None), Quarantined)


def test_quarantine_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.engines.exllamav2.failures.time.monotonic", lambda: now)
    quarantine, sequence = Quarantine({}), Sequence(("a", 0), [1], 5, Sampling())
    quarantine.strike([sequence])
    quarantine.check(sequence)
    quarantine.strike([sequence])
    with pytest.raises(Quarantined):
        quarantine.check(sequence)
    now += 601
    quarantine.check(sequence)


def test_a_generator_that_cannot_be_made_again_ends_the_process(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    engine.submit(Sequence(("a", 0), [5], 5, Sampling()))
    exl2.errors[1] = ValueError("odd")

    def fail(*_: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(type(engine._loaded), "new_generator", fail)
    with pytest.raises(EngineFatal, match="no more memory"):
        engine.step()
    engine.close()


def test_closing_frees_all(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    engine.submit(Sequence(("a", 0), [5], 5, Sampling()))
    engine.step()
    model = exl2.generators[0].model
    engine.close()
    assert not model.is_loaded
    assert exl2.generators[0].sampling_pool._shutdown


def test_choices_of_one_request_are_one_suspect(exl2: World, tmp_path: Path) -> None:
    exl2.errors[1] = ValueError("odd")
    engine = make_engine(tmp_path)
    choices = [Sequence(("a", i), [5], 5, Sampling(seed=i)) for i in range(3)]
    for sequence in choices:
        engine.submit(sequence)
    with pytest.raises(EngineError, match="odd"):
        engine.step()
    engine.check(choices[0])


def test_the_next_process_knows_who_was_there_when_the_gpu_was_lost(
    exl2: World, tmp_path: Path
) -> None:
    sequence = Sequence(("a", 0), [5], 5, Sampling())
    poison: dict[str, int] = {}
    for count in (1, 2):
        exl2.errors[1] = RuntimeError("CUDA error: an illegal memory access")
        engine = make_engine(tmp_path, poison=poison)
        engine.submit(sequence)
        with pytest.raises(EngineFatal) as caught:
            engine.step()
        poison = caught.value.poison
        assert list(poison.values()) == [count]
    with pytest.raises(Quarantined):
        make_engine(tmp_path, poison=poison).check(sequence)


def test_out_of_memory_while_a_prompt_is_read_lowers_the_piece_and_not_the_batch(
    exl2: World, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path, context_length=8192)
    exl2.texts["s"] = ids("s" * 100)
    engine.submit(Sequence(("s", 0), ids("s"), 100, Sampling()))
    engine.step()
    engine.submit(Sequence(("x", 0), ids("x" * 5000), 5, Sampling()))
    exl2.errors[2] = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(EngineError, match="out of memory"):
        engine.step()
    assert exl2.generators[-1].max_chunk_size == 256, "half of what was read beside a stream"
    assert engine.free_slots == 4


def test_a_cancel_that_fails_is_the_failure_of_the_next_step(exl2: World, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    exl2.texts["b"] = exl2.texts["a"] = ids("x" * 50)
    for name in "ab":
        engine.submit(Sequence((name, 0), ids(name), 40, Sampling()))
    engine.step()
    exl2.cancel_error = AssertionError("page was referenced twice")
    engine.cancel(("a", 0))
    engine.cancel(("b", 0))
    assert engine.has_work, "a step is to come"
    assert not engine.can_admit(Sequence(("c", 0), ids("c"), 4, Sampling()))
    with pytest.raises(EngineError, match="referenced twice"):
        engine.step()
    assert not engine.has_work
    exl2.texts["next"] = ids("fine")
    assert run_all(engine, make_run("next", max_tokens=4)).text("next") == "fine"


def test_a_cancel_that_fails_after_a_stop_string_loses_no_text(exl2: World, tmp_path: Path) -> None:
    exl2.texts["j"] = ids("beforeSTOPafter")
    exl2.cancel_error = AssertionError("page was referenced twice")
    with running(make_engine(tmp_path)) as (loop, sink):
        loop.submit(make_run("j", max_tokens=60, stop=["STOP"]))
        loop.start()
        sink.wait_for_ends(1)
        assert sink.text("j") == "before"
        exl2.texts["lost"] = exl2.texts["next"] = ids("fine")
        loop.submit(make_run("next", max_tokens=4))
        sink.wait_for_ends(1)
        assert sink.text("next") == "fine"
        assert not loop.is_wedged


def test_a_result_that_cannot_be_read_fails_the_step_and_not_the_loop(
    exl2: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)

    def fail(*_: object) -> None:
        raise KeyError("token_ids")

    with monkeypatch.context() as patched:
        patched.setattr(RunningSequence, "read_tokens", fail)
        assert "token_ids" in run_all(engine, make_run("j")).error("j").message
    assert run_all(engine, make_run("j")).end("j")
