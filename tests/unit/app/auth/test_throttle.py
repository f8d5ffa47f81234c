"""Failed keys are counted for each network."""

import pytest
import redis

from app.auth import throttle
from app.auth.throttle import FailedKeyThrottle
from shared import names

_HERE = "192.0.2.1"


def test_further_keys_of_a_blocked_network_cost_redis_nothing(client: redis.Redis) -> None:
    counted = FailedKeyThrottle(client)
    while not counted.count(_HERE):
        pass
    client.delete(names.failed_keys_key(_HERE))
    assert counted.count(_HERE) > 0
    assert not client.exists(names.failed_keys_key(_HERE))


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "/tmp/socket", True),
    ],
)
def test_an_address_counts_for_its_network(one: str, other: str, is_same: bool) -> None:
    assert (throttle._network(one) == throttle._network(other)) is is_same
