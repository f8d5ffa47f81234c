"""The load of `llmis restart --load`: which model it uses, and whether its answers are known."""

import pytest

from cli.client import ServiceClient
from cli.commands.load_generator import LoadGenerator
from tests.support.fake_service import FakeService, Reply

COMPLETIONS = "POST /v1/completions"


@pytest.mark.parametrize(("text", "is_exact"), [(" 6 7 8", True), (" 6 8", False), (" 6", False)])
def test_a_ready_model_that_generates_text_is_loaded(
    fake: FakeService, text: str, is_exact: bool
) -> None:
    offered = [
        {"id": "vectors", "state": "ready", "capabilities": ["embedding"]},
        {"id": "asleep", "state": "unloaded", "capabilities": ["completion"]},
        {"id": "counter", "state": "ready", "capabilities": ["completion"]},
    ]
    fake.replies["GET /v1/models"] = Reply({"data": offered})
    fake.replies[COMPLETIONS] = Reply({"choices": [{"text": text}]})
    assert LoadGenerator(ServiceClient(fake.url), 1).is_exact is is_exact
    assert [body["model"] for body in fake.bodies(COMPLETIONS)] == ["counter"]
