"""What chat templates may do with what they are given."""

import json
import time

import pytest

from shared.errors import InvalidRequest
from worker.chat import template as template_module
from worker.chat.template import MARK, ChatTemplate


def _render(source: str, content: str = "x") -> str:
    return ChatTemplate(source, "", "").render([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**9 }}",
        "{{ [1] * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ 9**9**9 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    ],
)
def test_templates_cannot_take_all_memory(source: str) -> None:
    with pytest.raises(InvalidRequest):
        _render(source)


def test_templates_cannot_take_all_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "_MAX_S", 0.05)
    started_s = time.thread_time()
    with pytest.raises(InvalidRequest, match="too long"):
        _render("{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}")
    assert time.thread_time() - started_s < 10


def test_usual_arithmetic_goes_on() -> None:
    assert (
        _render("{{ 3 * 4 }}{{ '-' * 5 }}{{ 2 ** 3 }}{{ (messages * 2) | length }}") == "12-----82"
    )


def test_marks_of_training_are_skipped() -> None:
    assert _render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "axb"


def test_whether_a_template_takes_tools_is_read_from_its_variables() -> None:
    assert ChatTemplate("{% if tools %}{% endif %}", "", "").takes_tools
    assert not ChatTemplate("tools {{ messages[0].tools }}", "", "").takes_tools


@pytest.mark.parametrize(
    "text", [f"a{MARK}b", f"\\{MARK}", "\\ufdd0", "\\\\ufdd0", f"\\ufdd0{MARK}"]
)
def test_marks_survive_json_in_ascii(text: str) -> None:
    rendered = _render("{{ messages[0].content | tojson(ensure_ascii=True) }}", text)
    assert rendered.count(MARK) == text.count(MARK)
    assert json.loads(rendered) == text
