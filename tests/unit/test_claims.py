"""Claims whose answers are lost: the call is repeated, and the claim knows itself again."""

import redis

from shared import claims
from shared.claims import Claim


def test_a_claim_is_taken_once(redis_socket: str) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    assert claims.take(client, "j", Claim("a"), 10)
    assert not claims.take(client, "j", Claim("b"), 10)
    assert claims.read(client, "j") == Claim("a")


def test_a_claim_that_is_taken_over_twice_is_the_heirs(redis_socket: str) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    dead, heir = Claim("a"), Claim("b", attempt=1)
    claims.take(client, "j", dead, 10)
    assert claims.take_over(client, "j", dead, heir, 10)
    assert claims.take_over(client, "j", dead, heir, 10), "the answer to the first was lost"
    assert not claims.take_over(client, "j", dead, Claim("c", attempt=1), 10)


def test_a_full_redis_takes_claims_and_flags(redis_socket: str) -> None:
    client = redis.Redis(unix_socket_path=redis_socket)
    client.config_set("maxmemory", 1)
    assert claims.take(client, "j", Claim("a"), 10)
    assert claims.take_over(client, "j", Claim("a"), Claim("b", attempt=1), 10)
    claims.flag_cancelled(client, "j", 10)
