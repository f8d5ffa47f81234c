"""What the tests with other people's clients have in common."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests import embedding_model
from tests.admin_client import load, unload
from tests.conftest import TEST_FILES, Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """LangChain's tests of its own overhead replay recordings: there is no service in them."""
    items[:] = [item for item in items if item.get_closest_marker("vcr") is None]


@pytest.fixture
async def async_client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="package")
def embeddings(service: Service) -> Iterator[str]:
    """Name of a model that embeds, loaded at run time."""
    path = TEST_FILES / "models" / "mean.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        embedding_model.write_mean(partial)
        partial.rename(path)
    status, answer = load(service, "mean", path=path.name)
    assert status == 200, answer
    yield "mean"
    unload(service, "mean")


@pytest.fixture(scope="package")
def tool_counter(service: Service) -> Iterator[str]:
    """Name of a counter whose template knows tools, so that their answers stand as they are."""
    template = "{% if tools %}{# <tool_call> #}{% endif %}{{ messages[-1].content }}"
    fields = {"context_length": 2048, "slots": 8, "strip_leading_space": True}
    status, answer = load(service, "tool-counter", chat_template=template, **fields)
    assert status == 200, answer
    yield "tool-counter"
    unload(service, "tool-counter")
