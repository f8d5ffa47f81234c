"""The replica process: how it ends when its engine does."""

from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import SettingsError
from shared.registry import records
from shared.wire.job import ToolChoice
from tests.support import chat_templates
from tests.support.chat_jobs import TIME, chat_job
from tests.support.scripted_engine import ScriptedEngine
from worker.agent.managed_replica import _ERROR_PREFIX
from worker.chat.prompts import ChatPrompts
from worker.chat.template import ChatTemplate, UnusableTemplate
from worker.replica import poison, process
from worker.replica.process import ReplicaProcess


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A replica whose engine loop has ended, and what its death does."""
    replica: Any = ReplicaProcess.__new__(ReplicaProcess)
    replica.codes, replica.withdrawn = [], []
    monkeypatch.setattr(process.os, "_exit", replica.codes.append)
    monkeypatch.setattr(records, "withdraw", lambda _, name: replica.withdrawn.append(name))
    replica.id = "r"
    replica._client = _Hashes()
    replica._spec = SimpleNamespace(name="m")
    replica._settings = SimpleNamespace(redis_timeout_s=1.0)
    replica._publisher = SimpleNamespace(stop=lambda timeout_s: None)
    replica._loop = SimpleNamespace(fatal_reason="The GPU failed (CUDA error)", poison={})
    return replica


class _Hashes:
    """Of Redis: hashes, and when they expire. Its own pipeline."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[bytes, bytes]] = {}
        self.ttl_s: dict[str, int] = {}

    def pipeline(self, transaction: bool) -> "_Hashes":
        return self

    def __enter__(self) -> "_Hashes":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self) -> None:
        pass

    def hset(self, key: str, mapping: dict[str, str]) -> None:
        made = {field.encode(): value.encode() for field, value in mapping.items()}
        self.hashes[key] = self.hashes.get(key, {}) | made

    def expire(self, key: str, ttl_s: int) -> None:
        self.ttl_s[key] = ttl_s

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        return self.hashes.get(key, {})


def test_the_reason_of_the_engine_is_the_last_word_that_the_agent_reads(
    dying: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dying._die()
    assert dying.codes == [70], "not 1: that would say that another try is of no use"
    assert dying.withdrawn == ["r"]
    assert capsys.readouterr().err == f"{_ERROR_PREFIX}The GPU failed (CUDA error)\n"
    assert not dying._client.hashes


def test_the_next_process_of_the_model_knows_the_poison_requests(dying: Any) -> None:
    dying._loop.poison = {"a": 1, "b": 1}
    dying._die()
    dying._loop.poison = {"b": 2}
    dying._die()
    assert dying.withdrawn == ["r", "r"]
    assert poison.recall(dying._client, "m") == {"a": 1, "b": 2}
    assert poison.recall(dying._client, "other") == {}
    assert list(dying._client.ttl_s.values()) == [600]


# -- chat templates --------------------------------------------------------------------------------


def _engine(chat_template: str | None, tool_use_template: str | None = None) -> ScriptedEngine:
    engine = ScriptedEngine(1, [])
    engine.chat_template, engine.tool_use_template = chat_template, tool_use_template
    return engine


def _rendered(engine: ScriptedEngine, **fields: Any) -> str:
    template = process._chat_template(None, engine)
    assert isinstance(template, ChatTemplate)
    return ChatPrompts(template, engine.vocabulary).render(chat_job(**fields))


def test_a_request_with_tools_gets_the_models_template_for_tools() -> None:
    own = (
        "{% if tools %}TOOLS {{ tools | tojson }} <tool_call>{% endif %}{{ messages[-1].content }}"
    )
    engine = _engine("{{ messages[-1].content }}", own + " 500")
    assert _rendered(engine) == "hi"
    text = _rendered(engine, tools=[TIME])
    assert text.startswith('TOOLS [{"type": "function"') and text.endswith("hi 500")
    assert _rendered(engine, tools=[TIME], tool_choice=ToolChoice.NONE) == "hi"
    assert _rendered(_engine(None, own), tools=[TIME]).startswith("TOOLS")


@pytest.mark.parametrize("broken", ["{% if %}", "{{ tools | length }}", "{{ messages[0].text }}"])
def test_a_template_for_tools_that_is_of_no_use_is_not_used(broken: str) -> None:
    engine = _engine("{{ messages[-1].content }}", broken)
    assert _rendered(engine, tools=[TIME]).endswith("hi")


def test_a_configured_template_replaces_both_of_the_model() -> None:
    template = process._chat_template("[{{ messages[-1].content }}]", _engine("D", "U"))
    assert isinstance(template, ChatTemplate) and template.for_tools is template


@pytest.mark.parametrize("source", ["{{ if .System }}{{ .System }}{{ end }}", "{% if %}{{ x"])
def test_a_model_whose_own_template_does_not_compile_is_loaded_with_the_reason(source: str) -> None:
    template = process._chat_template(None, _engine(source))
    assert isinstance(template, UnusableTemplate)
    assert template.reason.startswith("chat_template: ")
    with pytest.raises(SettingsError, match="chat_template"):
        process._chat_template(source, _engine(None))


def test_a_template_that_leaves_out_what_users_write_refuses_the_load() -> None:
    for configured, own in ((None, "Hello."), ("Hello.", None)):
        with pytest.raises(SettingsError, match="leaves out the text of the user's messages, "):
            process._chat_template(configured, _engine(own))
    with_tools = "{% if tools %}<tool_call>{% else %}{{ messages[0].content }}{% endif %}"
    with pytest.raises(SettingsError, match="messages when there are tools, "):
        process._chat_template(None, _engine(with_tools))


@pytest.mark.parametrize("source", [*chat_templates.ALL.values(), None])
def test_usual_templates_are_loaded(source: str | None) -> None:
    template = process._chat_template(source, _engine(None))
    assert (template is None) is (source is None)
