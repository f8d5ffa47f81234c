"""LangChain's own integration tests for chat models, with its OpenAI client and the demo model."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.conftest import Service


class TestChatOpenAI(ChatModelIntegrationTests):
    """All of them: what fails is marked with its reason below."""

    _url = ""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _address(cls, service: Service) -> None:
        cls._url = f"{service.url}/v1"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "gemma-3-270m",
            "base_url": self._url,
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 120,
            "seed": 1,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True
