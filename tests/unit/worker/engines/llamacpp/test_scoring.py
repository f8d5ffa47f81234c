"""llama.cpp: prompts whose log probabilities are wanted, beside streams and alone."""

from pathlib import Path

import pytest

from shared.wire.job import Sampling
from tests.support import counter_model
from tests.support.counter_model import number_token, trigger_token
from worker.engines.base import EngineSettings
from worker.engines.llamacpp.engine import LlamaCppEngine
from worker.engines.registry import load
from worker.sequence import Sequence

_GREEDY = Sampling(temperature=0.0)
_PROMPT = [number_token(n) for n in range(40)]


@pytest.fixture
def engine(tmp_path: Path) -> LlamaCppEngine:
    path = tmp_path / "counter.gguf"
    counter_model.write(path)
    made = load("llamacpp", EngineSettings(path, 256, 4, 1))
    assert isinstance(made, LlamaCppEngine)
    return made


def _scored(max_tokens: int = 0) -> Sequence:
    return Sequence(("p", 0), _PROMPT, max_tokens, _GREEDY, logprobs=1, prompt_logprobs=True)


def _num_scored(engine: LlamaCppEngine) -> list[int]:
    """For each step until the prompt is read."""
    found = []
    while ("p", 0) in engine._by_key:
        found.append(sum(len(result.prompt_logprobs) for result in engine.step()))
    return found


def test_a_prompt_is_scored_in_small_pieces_while_others_stream(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.submit(Sequence(("s", 0), [number_token(7)], 100, _GREEDY))
    engine.step()
    monkeypatch.setattr(engine._scoring_budget, "record", lambda *_: None)
    engine._scoring_budget._token_s = 0.006
    engine.submit(_scored())
    found = _num_scored(engine)
    assert sum(found) == len(_PROMPT)
    assert max(found) <= 4, "three of 6 ms fit 20 ms; the first token has its own for nothing"
    engine.cancel(("s", 0))
    engine.submit(_scored())
    assert len(_num_scored(engine)) == 3, "nobody waits"
    engine.close()


def test_scored_and_drawn_rows_do_not_mix(engine: LlamaCppEngine) -> None:
    engine.submit(_scored(max_tokens=2))
    engine.submit(Sequence(("s", 0), [trigger_token("<stop>")], 5, _GREEDY, logprobs=0))
    results = []
    while engine.has_work:
        results += engine.step()
    prompt = [e for r in results for e in r.prompt_logprobs]
    assert [entry.chosen.token_id for entry in prompt] == _PROMPT
    assert all(entry.top[0] == entry.chosen for entry in prompt[1:])
    drawn = {key: [t for r in results if r.key[0] == key for t in r.token_ids] for key in "ps"}
    assert drawn["p"] == [number_token(40), number_token(41)]
    (end,) = [entry for r in results if r.key[0] == "s" for entry in r.logprobs]
    assert end.is_end and end.chosen.name == b"</s>" and end.chosen.piece == b""
    assert drawn["s"] == [end.chosen.token_id]
    engine.close()
