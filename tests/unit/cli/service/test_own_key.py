"""The key of `llmis up`: there while it runs, and sent to its own service alone."""

import stat
from pathlib import Path

import pytest
import redis

from cli.address import key_for, own_key_path
from cli.service import own_key
from shared import api_keys
from shared.api_keys import Scope
from shared.settings.fields import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("LLMIS_API_KEY", raising=False)
    return Settings(base_dir=str(tmp_path), data_dir=".", requests_per_minute=1)


def test_it_is_made_for_one_start(client: redis.Redis, settings: Settings) -> None:
    key = own_key.make(settings, client)
    (record,) = api_keys.read(client).values()
    assert (record.scope, record.limits["requests_per_minute"]) == (Scope.ADMIN, 0)
    assert key_for(settings) == key
    assert stat.S_IMODE(own_key_path(settings).stat().st_mode) == 0o600
    own_key.revoke(settings, client)
    assert not api_keys.read(client)
    assert key_for(settings) == ""


def test_what_a_killed_service_left_is_revoked(
    client: redis.Redis, settings: Settings, tmp_path: Path
) -> None:
    api_keys.create(client, "llmis up", Scope.USER)
    (tmp_path / "other").mkdir()
    other = Settings(base_dir=str(tmp_path), data_dir="other")
    first, kept = own_key.make(settings, client), own_key.make(other, client)
    second = own_key.make(settings, client)
    found = api_keys.read(client)
    assert api_keys.digest(first) not in found
    assert {api_keys.digest(second), api_keys.digest(kept)} < set(found)
    assert len(found) == 3


def test_a_key_in_the_environment_goes_first(
    client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_key.make(settings, client)
    monkeypatch.setenv("LLMIS_API_KEY", "sk-mine")
    assert key_for(settings) == "sk-mine"
