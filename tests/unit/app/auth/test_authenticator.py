"""Who is let in: by the copy of the keys, through outages, and beside somebody who guesses."""

import time
from types import SimpleNamespace

import msgspec
import pytest
import redis
from prometheus_client import REGISTRY

from app.auth import authenticator as auth
from app.auth import throttle
from app.auth.authenticator import Authenticator
from shared import api_keys, names
from shared.api_keys import Scope
from shared.errors import QueueUnavailable, TooManyRequests, Unauthorized
from shared.limits import Limits
from shared.registry.directory import Directory
from shared.settings.fields import Settings

_HERE = "192.0.2.1"
_NOBODY = redis.Redis(port=1)
"""Does not answer."""


class _Directory(Directory):
    """Says what the test wants of Redis."""

    is_reachable = True


def _authenticator(
    client: redis.Redis, directory: Directory | None = None, **settings: object
) -> Authenticator:
    made = Authenticator(Settings(auth=True, **settings), client, directory or _Directory(client))
    made.refresh()
    return made


def test_a_key_names_its_owner_scope_and_limits(client: redis.Redis) -> None:
    own = {"requests_per_minute": 7}
    key, record = api_keys.create(client, "a", Scope.ADMIN, limits=own)
    found = _authenticator(client, tokens_per_minute=9).principal(f"bearer  {key} ", _HERE)
    assert (found.owner, found.scope) == (record.id, Scope.ADMIN)
    assert found.limits == Limits(requests_per_minute=7, tokens_per_minute=9)
    assert key not in repr(found)


def test_a_key_works_as_soon_as_it_is_made(client: redis.Redis) -> None:
    authenticator = _authenticator(client)
    key, record = api_keys.create(client, "a", Scope.USER)
    principal = authenticator.identify(key, _HERE)
    assert principal.owner == record.id
    assert authenticator.renewed(principal) == principal


def test_while_redis_hangs_known_keys_hold_and_others_are_told_at_once(client: redis.Redis) -> None:
    known, record = api_keys.create(client, "a", Scope.USER)
    directory = _Directory(client)
    authenticator = _authenticator(client, directory)
    new, _ = api_keys.create(client, "b", Scope.USER)
    client.config_resetstat()
    directory.is_reachable = False
    assert authenticator.identify(known, _HERE).owner == record.id
    for key in (new, "sk-wrong"):
        with pytest.raises(QueueUnavailable):
            authenticator.identify(key, _HERE)
    assert not {"cmdstat_hexists", "cmdstat_incr"} & client.info("commandstats").keys()
    directory.is_reachable = True
    assert authenticator.identify(new, _HERE)


def test_a_revoked_key_is_refused_from_the_next_beat_on(client: redis.Redis) -> None:
    key, record = api_keys.create(client, "a", Scope.USER)
    authenticator = _authenticator(client)
    principal = authenticator.identify(key, _HERE)
    api_keys.revoke(client, record.id)
    authenticator.refresh()
    for refused in (
        lambda: authenticator.identify(key, _HERE),
        lambda: authenticator.renewed(principal),
    ):
        with pytest.raises(Unauthorized, match="not known"):
            refused()


def test_an_expired_key_is_refused_without_any_beat(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = time.time() + 60
    key, _ = api_keys.create(client, "a", Scope.USER, expires_at=expires_at)
    authenticator = _authenticator(client)
    monkeypatch.setattr(auth, "clock", SimpleNamespace(now=lambda: expires_at - 0.001))
    principal = authenticator.identify(key, _HERE)
    assert authenticator.renewed(principal) == principal
    monkeypatch.setattr(auth, "clock", SimpleNamespace(now=lambda: expires_at))
    for refused in (
        lambda: authenticator.identify(key, _HERE),
        lambda: authenticator.renewed(principal),
    ):
        with pytest.raises(Unauthorized, match="expired"):
            refused()


def test_refusals_are_counted_by_their_reason(client: redis.Redis) -> None:
    def counted(reason: str) -> float:
        name = "llmis_auth_failures_total"
        return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0

    before = counted("missing"), counted("unknown")
    authenticator = _authenticator(client)
    with pytest.raises(Unauthorized):
        authenticator.principal("", _HERE)
    with pytest.raises(Unauthorized):
        authenticator.principal("Bearer sk-none", _HERE)
    assert (counted("missing"), counted("unknown")) == (before[0] + 1, before[1] + 1)


def test_known_keys_outlive_an_outage_and_unknown_ones_are_not_let_in(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, record = api_keys.create(client, "a", Scope.USER)
    authenticator = _authenticator(client)
    monkeypatch.setattr(authenticator, "_client", _NOBODY)
    with pytest.raises(redis.RedisError):
        authenticator.refresh()
    assert authenticator.identify(key, _HERE).owner == record.id
    with pytest.raises(redis.RedisError):
        authenticator.identify("sk-llmis-other", _HERE)


def test_a_damaged_record_does_not_keep_others_from_being_revoked(client: redis.Redis) -> None:
    key, record = api_keys.create(client, "a", Scope.USER)
    bad = msgspec.structs.replace(record, limits={"requests_per_minute": -1})
    client.hset(names.API_KEYS, "d1", b"\xff")
    client.hset(names.API_KEYS, "d2", msgspec.msgpack.encode(bad))
    authenticator = _authenticator(client)
    assert authenticator.identify(key, _HERE).owner == record.id
    api_keys.revoke(client, record.id)
    authenticator.refresh()
    with pytest.raises(Unauthorized):
        authenticator.identify(key, _HERE)


def test_keys_are_read_only_when_they_have_changed(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = _authenticator(client)
    reads = []
    monkeypatch.setattr(api_keys, "read", lambda client: reads.append(1) or {})
    authenticator.refresh()
    assert not reads
    api_keys.create(client, "a", Scope.USER)
    authenticator.refresh()
    authenticator.refresh()
    assert len(reads) == 1


def test_without_auth_keys_tell_owners_apart_and_are_not_checked() -> None:
    authenticator = Authenticator(Settings(), _NOBODY, Directory(_NOBODY))
    authenticator.refresh()
    anybody = authenticator.principal("", _HERE)
    alice, bob = (authenticator.principal(f"Bearer {key}", _HERE) for key in ("alice", "bob"))
    assert len({anybody.owner, alice.owner, bob.owner}) == 3
    assert anybody.owner == "anonymous"
    assert "alice" not in alice.owner


def test_an_address_with_too_many_failed_keys_has_to_wait_and_its_neighbour_has_not(
    client: redis.Redis,
) -> None:
    key, record = api_keys.create(client, "a", Scope.USER)
    web1, web2 = _authenticator(client), _authenticator(client)
    for number in range(throttle._MAX_FAILED):
        with pytest.raises(Unauthorized):
            (web1, web2)[number % 2].identify(f"guess-{number}", _HERE)
    for web in (web1, web2, web1):
        with pytest.raises(TooManyRequests) as refused:
            web.identify("guess-more", _HERE)
        assert 0 < refused.value.retry_after_s <= 60
        assert web.identify(key, _HERE).owner == record.id
    with pytest.raises(Unauthorized):
        web1.identify("guess-elsewhere", "192.0.2.2")
