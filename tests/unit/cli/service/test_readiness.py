"""What `llmis up` asks the service while it starts."""

from cli.client import ServiceClient
from cli.service import readiness
from tests.conftest import free_port
from tests.support import fake_service
from tests.support.fake_service import FakeService, Reply


def test_a_service_that_does_not_answer_yet() -> None:
    client = ServiceClient(f"http://127.0.0.1:{free_port()}")
    assert not readiness.web_answers(client)
    assert readiness.find_model(client, "m") is None
    assert not readiness.model_answers(client, "m")


def test_a_model_that_is_not_listed_yet(fake: FakeService) -> None:
    client = ServiceClient(fake.url)
    assert readiness.find_model(client, "none") is None
    fake.replies["GET /admin/models"] = fake_service.error("The queue is not reachable.", 503)
    assert readiness.find_model(client, "counter") is None


def test_a_model_that_failed(fake: FakeService) -> None:
    found = readiness.find_model(ServiceClient(fake.url), "broken")
    assert found is not None
    assert found.error is not None
    assert found.error.message == "is not a GGUF file"


def test_a_model_that_embeds_answers_too(fake: FakeService) -> None:
    client = ServiceClient(fake.url)
    fake.replies["POST /v1/completions"] = fake_service.error("It embeds.", 400)
    assert not readiness.model_answers(client, "m")
    fake.replies["POST /v1/embeddings"] = Reply({"data": []})
    assert readiness.model_answers(client, "m")
    assert fake.bodies("POST /v1/embeddings")[-1] == {"model": "m", "input": "1"}


def test_a_model_that_generates_is_not_asked_for_a_vector(fake: FakeService) -> None:
    fake.replies["POST /v1/completions"] = Reply({"choices": []})
    assert readiness.model_answers(ServiceClient(fake.url), "m")
    assert fake.bodies("POST /v1/embeddings") == []
