"""Keys that do not hold are counted by the address that they come from, in Redis.

Past the limit such an address gets no further answer about keys for a while. Valid ones work on:
behind one address there may be an office, or a proxy and everybody.
"""

import ipaddress
import math
import time

import redis

from shared import names

_MAX_GUESSES = 20
_WINDOW_S = 60
_IPV6_PREFIX = 64
"""Of one customer, who has all addresses behind it."""
_MAX_REFUSED = 10_000
"""Networks that this process remembers; the others are counted anew."""


class Guesses:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._refused_until: dict[str, float] = {}
        """Network → monotonic time. Saves asking Redis about those who go on and on."""

    def wait_s(self, address: str) -> int:
        """Seconds for which the address is refused, as far as this process knows; 0 = it is
        not."""
        left_s = self._refused_until.get(_network(address), 0.0) - time.monotonic()
        return max(0, math.ceil(left_s))

    def count(self, address: str) -> int:
        """Count one more; seconds for which the address is refused. Raises redis.RedisError."""
        wait_s = self.wait_s(address)
        if wait_s:
            return wait_s
        network = _network(address)
        key = names.guesses_key(network)
        pipe = self._client.pipeline()
        pipe.incr(key)
        pipe.expire(key, _WINDOW_S, nx=True)
        pipe.ttl(key)
        count, _, ttl_s = (int(reply) for reply in pipe.execute())
        if count <= _MAX_GUESSES:
            return 0
        if len(self._refused_until) >= _MAX_REFUSED:
            self._refused_until.clear()
        wait_s = max(1, ttl_s)
        self._refused_until[network] = time.monotonic() + wait_s
        return wait_s


def _network(address: str) -> str:
    """The address, or what one customer has of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found.packed, _IPV6_PREFIX), strict=False).network_address)
