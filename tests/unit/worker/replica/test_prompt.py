"""Chat templates and the checks before a job reaches the engine."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.errors import ContextLengthExceeded, InvalidRequest, SettingsError
from shared.wire.job import ChatMessage, Grammar, GrammarKind, Job, JobKind, Sampling
from shared.wire.records import Capability
from tests.support.jobs import completion_job
from tests.support.scripted_engine import ByteVocabulary, ScriptedEngine
from worker.chat.template import ChatTemplate, UnusableTemplate
from worker.replica.prompt import PromptBuilder
from worker.sequence import Sequence

_TRANSCRIPT = (
    Path(__file__).parent.parent.parent.parent.parent / "templates" / "chat" / "transcript.jinja"
)


def _job(**fields: Any) -> Job:
    return completion_job(**{"prompts": ["abc"], **fields})


def _builder(template: str | None = None) -> PromptBuilder:
    compiled = ChatTemplate(template, "<s>", "</s>") if template else None
    return PromptBuilder(ScriptedEngine(1, []), compiled, ["END"])


class _Scorer(ScriptedEngine):
    def check(self, sequence: Sequence) -> None:
        """Takes everything."""


def test_transcript_ends_where_the_assistant_speaks() -> None:
    template = ChatTemplate(_TRANSCRIPT.read_text(), "<bos>", "<eos>")
    text = template.render(
        [
            {"role": "system", "content": " Be brief. "},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye"},
        ]
    )
    assert text.startswith("Be brief.\n\nUser: What is the largest planet?\nAssistant: Jupiter.\n")
    assert text.endswith("User: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:")


def test_the_begin_token_is_not_doubled() -> None:
    assert ChatTemplate("{{ bos_token }}x", "<s>", "").render([]) == "x"


def test_a_template_that_refuses_is_the_clients_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", "", "")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template.render([])


def test_templates_find_what_model_hubs_promise_them() -> None:
    source = "{{ messages | tojson(indent=None, ensure_ascii=False) }}{{ tools is none }}"
    assert ChatTemplate(source, "", "").render([{"a": "€"}]) == '[{"a": "€"}]True'


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages[5].x.y }}", "{{ 'a' + 1 }}"])
def test_a_template_that_breaks_on_the_messages_is_no_internal_error(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, "", "").render([])


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages.clear() }}"]
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, "", "").render([{"role": "user", "content": "x"}])


def test_a_broken_template_stops_the_start() -> None:
    with pytest.raises(SettingsError):
        ChatTemplate("{% if %}", "", "")


def test_the_begin_token_stays_where_the_tokenizer_adds_none() -> None:
    assert ChatTemplate("{{ bos_token }}x", "<s>", "", strip_bos=False).render([]) == "<s>x"


def test_a_text_that_is_too_long_by_its_bytes_is_never_tokenized() -> None:
    engine = ScriptedEngine(1, [])
    engine.tokenize = lambda *_, **__: pytest.fail("tokenized")  # type: ignore[method-assign]
    with pytest.raises(ContextLengthExceeded):
        PromptBuilder(engine, None, []).sequences(_job(prompts=["x" * 100]))


def test_a_template_that_renders_nothing_is_refused() -> None:
    chat = _job(kind=JobKind.CHAT, messages=[ChatMessage("user", "hi")], prompts=[])
    with pytest.raises(InvalidRequest, match="empty"):
        _builder("{# nothing #}").sequences(chat)


def test_choices_share_the_prompt_and_draw_with_seeds_of_their_own() -> None:
    job = _job(prompts=["ab", [1, 2, 3]], num_choices=2, sampling=Sampling(seed=5))
    sequences = _builder().sequences(job)
    assert [s.key for s in sequences] == [("j", i) for i in range(4)]
    assert [s.prompt for s in sequences] == [[97, 98], [97, 98], [1, 2, 3], [1, 2, 3]]
    assert [s.sampling.seed for s in sequences] == [5, 6, 7, 8]


def test_max_tokens_ends_at_the_context() -> None:
    assert _builder().sequences(_job())[0].max_tokens == 97
    assert _builder().sequences(_job(max_tokens=500))[0].max_tokens == 97
    assert _builder().sequences(_job(max_tokens=5))[0].max_tokens == 5


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        _builder().sequences(_job(prompts=["x" * 100]))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompts", [[""], [[256]]])
def test_empty_prompts_and_unknown_token_ids_are_refused(prompts: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _builder().sequences(_job(prompts=prompts))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token", [-1, 256])
def test_a_bias_on_an_unknown_token_is_refused(token: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _builder().sequences(_job(sampling=Sampling(logit_bias={token: 1.0})))
    assert caught.value.param == "logit_bias"


def test_chat_needs_a_template_and_adds_its_stop_strings() -> None:
    chat = _job(kind=JobKind.CHAT, messages=[ChatMessage("user", "hi")], prompts=[], stop=["A"])
    with pytest.raises(InvalidRequest, match="no chat template"):
        _builder().sequences(chat)
    sequence = _builder("{{ messages[0].content }}").sequences(chat)[0]
    assert bytes(sequence.prompt) == b"hi"
    assert sequence.stop == ["A", "END"]


@pytest.mark.parametrize("kind", GrammarKind)
def test_a_form_that_the_client_gives_keeps_its_leading_space(kind: GrammarKind) -> None:
    template = ChatTemplate("{{ messages[0].content }}", "", "")
    builder = PromptBuilder(_Scorer(1, []), template, [], strip_leading_space=True)
    fields: dict[str, Any] = {"kind": JobKind.CHAT, "messages": [ChatMessage("user", "hi")]}
    (plain,) = builder.sequences(_job(**fields, prompts=[]))
    assert plain.strip_leading_space
    (sequence,) = builder.sequences(_job(**fields, prompts=[], grammar=Grammar(kind, "{}")))
    assert sequence.strip_leading_space is (kind is GrammarKind.JSON_SCHEMA)


class _Embedder(ScriptedEngine):
    embeds = True


def _embedding_job(*prompts: str | list[int]) -> Job:
    return _job(kind=JobKind.EMBEDDING, prompts=list(prompts))


def test_an_input_is_a_sequence_that_may_fill_the_context() -> None:
    builder = PromptBuilder(_Embedder(1, []), None, [])
    first, second = builder.sequences(_embedding_job("abc", [7] * 100))
    assert (first.key, first.prompt, first.max_tokens) == (("j", 0), [97, 98, 99], 0)
    assert (second.key, len(second.prompt)) == (("j", 1), 100)
    for too_long in ([7] * 101, "x" * 101):
        with pytest.raises(ContextLengthExceeded) as caught:
            builder.sequences(_embedding_job("abc", too_long))
        assert caught.value.param == "input"
    with pytest.raises(InvalidRequest) as refused:
        builder.sequences(_embedding_job([256]))
    assert refused.value.param == "input"


def test_a_job_of_the_wrong_kind_names_the_model() -> None:
    for engine, job in (
        (_Embedder(1, []), _job()),
        (_Embedder(1, []), _job(kind=JobKind.CHAT, messages=[ChatMessage("user", "x")])),
        (ScriptedEngine(1, []), _embedding_job("x")),
    ):
        with pytest.raises(InvalidRequest) as caught:
            PromptBuilder(engine, None, []).sequences(job)
        assert caught.value.param == "model"


def test_texts_and_tokens_are_translated_past_the_engine() -> None:
    builder = _builder()
    job = _job(kind=JobKind.TOKENIZE, prompts=["x" * 99 + "é"])
    with pytest.raises(ContextLengthExceeded):
        builder.tokens(job)
    tokens = builder.tokens(_job(kind=JobKind.TOKENIZE, prompts=["aé"]))
    assert tokens == [97, 195, 169]
    assert builder.token_texts(tokens) == ["a", "\ufffd", "\ufffd"]
    assert builder.text(_job(kind=JobKind.DETOKENIZE, prompts=[tokens])) == "aé"
    with pytest.raises(InvalidRequest) as caught:
        builder.text(_job(kind=JobKind.DETOKENIZE, prompts=[[256]]))
    assert caught.value.param == "tokens"


def test_the_name_of_a_control_token_alone_is_that_token_when_none_are_added() -> None:
    """So a client finds the ids of the names in the tokenizer's description."""
    engine = ScriptedEngine(1, [])
    engine.vocabulary = ByteVocabulary({"<end>": 300})
    builder = PromptBuilder(engine, None, [])

    def tokens(text: str, *, add_special: bool) -> list[int]:
        return builder.tokens(_job(kind=JobKind.TOKENIZE, prompts=[text], add_special=add_special))

    assert tokens("<end>", add_special=False) == [300]
    assert tokens("<end>", add_special=True) == list(b"<end>")
    assert tokens("a<end>", add_special=False) == list(b"a<end>"), "text is text"


def test_a_prompt_is_scored_once_however_many_choices_it_has() -> None:
    builder = PromptBuilder(_Scorer(1, []), None, [])
    job = _job(prompts=["ab", "c"], num_choices=3, echo=True, logprobs=1, prompt_logprobs=True)
    scored = [s.prompt_logprobs for s in builder.sequences(job)]
    assert scored == [True, False, False, True, False, False]
    only_best_of = _job(num_choices=3, echo=True, logprobs=0)
    assert not any(s.prompt_logprobs for s in builder.sequences(only_best_of))


def test_more_log_probabilities_of_prompts_than_an_answer_carries_are_refused() -> None:
    """Choices times prompt tokens times alternatives and the token itself."""
    builder = PromptBuilder(_Scorer(1, []), None, [], max_prompt_logprobs=60)
    fields = {"num_choices": 4, "echo": True, "prompt_logprobs": True}
    assert builder.sequences(_job(prompts=["abc", "de"], logprobs=2, **fields))
    for prompts, logprobs in ((["abc", "def"], 2), (["abc", "de"], 3)):
        with pytest.raises(InvalidRequest, match="at most 60") as caught:
            builder.sequences(_job(prompts=prompts, logprobs=logprobs, **fields))
        assert caught.value.param == "logprobs"


def test_what_check_has_compiled_is_in_every_choice() -> None:
    engine = ScriptedEngine(1, [])

    def check(sequence: Sequence) -> None:
        sequence.compiled = "compiled"

    engine.check = check  # type: ignore[method-assign]
    job = _job(prompts=["a", "b"], num_choices=3)
    sequences = PromptBuilder(engine, None, []).sequences(job)
    assert [sequence.compiled for sequence in sequences] == ["compiled"] * 6


def test_a_chat_with_a_model_whose_template_cannot_be_used_says_why() -> None:
    builder = PromptBuilder(ScriptedEngine(1, []), UnusableTemplate("unknown tag 'x'"), [])
    assert builder.chat_error == "unknown tag 'x'"
    assert Capability.CHAT not in builder.capabilities
    chat = _job(kind=JobKind.CHAT, messages=[ChatMessage("user", "hi")], prompts=[])
    with pytest.raises(InvalidRequest, match=r"no usable chat template \(unknown tag 'x'\)"):
        builder.sequences(chat)


def test_a_continued_message_keeps_the_space_at_its_begin() -> None:
    template = ChatTemplate("{{ messages[-1].content }}", "", "")
    builder = PromptBuilder(ScriptedEngine(1, []), template, [], strip_leading_space=True)
    messages = [ChatMessage("user", "hi"), ChatMessage("assistant", "The capital is")]
    job = _job(kind=JobKind.CHAT, messages=messages, prompts=[])
    assert builder.sequences(job)[0].strip_leading_space
    (sequence,) = builder.sequences(msgspec.structs.replace(job, continues=True))
    assert not sequence.strip_leading_space
    assert bytes(sequence.prompt) == b"The capital is"
