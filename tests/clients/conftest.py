"""What the tests with other people's clients have in common."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest

from tests.clients import node_runtime
from tests.conftest import TEST_FILES, Service
from tests.support import embedding_model
from tests.support.admin_client import load, unload

TOOL_TEMPLATE = "{% if tools %}{# <tool_call> #}{% endif %}{{ messages[-1].content }}"
"""Of a model that counts and knows tools."""


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
    path = embedding_model.mean_file(TEST_FILES / "models")
    status, answer = load(service, "mean", path=path)
    assert status == 200, answer
    yield "mean"
    unload(service, "mean")


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """The folder with the installed npm packages. Skips where they cannot be had."""
    return node_runtime.install()


@pytest.fixture(scope="package")
def tool_counter(service: Service) -> Iterator[str]:
    """Name of a counter whose template knows tools, so that their answers stand as they are."""
    fields = {"context_length": 2048, "slots": 8, "strip_leading_space": True}
    status, answer = load(service, "tool-counter", chat_template=TOOL_TEMPLATE, **fields)
    assert status == 200, answer
    yield "tool-counter"
    unload(service, "tool-counter")
