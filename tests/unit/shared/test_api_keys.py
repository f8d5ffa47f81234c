"""API keys: made, found by their hashes, revoked; never stored themselves."""

import json
import re
import time

import pytest
import redis

from shared import api_keys, names
from shared.api_keys import Scope
from tests.support.cli_answers import run


def test_a_key_is_found_by_its_hash_and_stored_nowhere(client: redis.Redis) -> None:
    limits = {"requests_per_minute": 3}
    key, record = api_keys.create(client, "alice", Scope.USER, limits=limits)
    assert api_keys.read(client) == {api_keys.digest(key): record}
    stored = b"".join(k + v for k, v in client.hgetall(names.API_KEYS).items())
    assert key.encode() not in stored
    assert len(key) >= 43 and key.startswith(record.shown)


def test_a_key_expires(client: redis.Redis) -> None:
    now = time.time()
    _, record = api_keys.create(client, "brief", Scope.USER, expires_at=now + 5)
    assert not record.is_expired(now)
    assert record.is_expired(now + 5)


def test_a_limit_of_a_newer_version_leaves_the_key_and_its_other_limits(
    client: redis.Redis,
) -> None:
    key, record = api_keys.create(
        client, "new", Scope.USER, limits={"requests_per_minute": 3, "images_per_minute": 1}
    )
    assert record.limits["images_per_minute"] == 1
    found = api_keys.read(client)[api_keys.digest(key)]
    assert (found.id, found.limits) == (record.id, {"requests_per_minute": 3})
    assert api_keys.revoke(client, record.id) == [found]


def test_keys_are_revoked_by_id_or_name(client: redis.Redis) -> None:
    _, first = api_keys.create(client, "a", Scope.USER)
    _, second = api_keys.create(client, "a", Scope.ADMIN)
    _, third = api_keys.create(client, "b", Scope.USER)
    assert api_keys.revoke(client, first.id) == [first]
    assert api_keys.revoke(client, "a") == [second]
    assert api_keys.revoke(client, "a") == []
    assert list(api_keys.read(client).values()) == [third]


def test_the_command_makes_lists_and_revokes(
    redis_socket: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://{redis_socket}")
    made = run("keys", "create", "ci", "--scope", "admin", "--rpm", "60", "--expires", "30d")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    record = api_keys.read(client)[api_keys.digest(key)]
    assert (record.scope, record.limits) == (Scope.ADMIN, {"requests_per_minute": 60})
    assert 29 * 86400 < record.expires_at - record.created_at <= 30 * 86400
    listed = run("keys", "list")
    assert "ci" in listed.stdout and key not in listed.stdout
    assert [r["id"] for r in json.loads(run("keys", "list", "--json").stdout)] == [record.id]
    assert re.fullmatch(rf"revoked {record.id} \(ci\)", run("keys", "revoke", "ci").stdout.strip())
    assert run("keys", "revoke", "ci").exit_code == 1
    made = run("keys", "create", "prometheus", "--scope", "metrics")
    assert api_keys.read(client)[api_keys.digest(made.stdout.strip())].scope is Scope.METRICS
    assert run("keys", "create", "x", "--expires", "soon").exit_code == 2


def test_a_key_ends_within_ten_years_or_never(
    redis_socket: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://{redis_socket}")
    for expires in ("999999w", "3651d"):
        refused = run("keys", "create", "x", "--expires", expires)
        assert refused.exit_code == 2
        assert "ten years" in refused.output
    assert not api_keys.read(client)
    assert run("keys", "create", "x", "--expires", "3650d").exit_code == 0


@pytest.mark.parametrize("at", [6e11, 1e300, -1e300, float("inf"), float("nan")])
def test_a_time_that_there_is_not_does_not_hide_the_keys(
    redis_socket: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://{redis_socket}")
    api_keys.create(client, "odd", Scope.USER, expires_at=at)
    api_keys.create(client, "good", Scope.USER)
    for more in ([], ["--json"]):
        listed = run("keys", "list", *more)
        assert listed.exit_code == 0
        assert "odd" in listed.stdout and "good" in listed.stdout
