"""Counts failed keys per client network, in Redis.

Over the limit, invalid keys from that network are a 429 for the rest of the window. Valid keys keep
working: an office or a proxy may stand behind one address.
"""

import ipaddress
import math
import time

import redis

from shared import names

_MAX_FAILED = 20
_WINDOW_S = 60
_IPV6_PREFIX = 64
"""One customer usually has all addresses of such a network."""
_MAX_NETWORKS = 10_000
"""Networks over the limit that this process remembers; Redis still has the counts of all."""


class FailedKeyThrottle:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._blocked_until: dict[str, float] = {}
        """Network → monotonic time. Saves a round trip for each further key of that network."""

    def wait_s(self, address: str) -> int:
        """Seconds for which the address is blocked, as far as this process knows; 0 = it is
        not."""
        left_s = self._blocked_until.get(_network(address), 0.0) - time.monotonic()
        return max(0, math.ceil(left_s))

    def count(self, address: str) -> int:
        """Count one failed key; return the seconds for which the address is blocked. Raises
        redis.RedisError."""
        wait_s = self.wait_s(address)
        if wait_s:
            return wait_s
        network = _network(address)
        key = names.failed_keys_key(network)
        pipe = self._client.pipeline()
        pipe.incr(key)
        pipe.expire(key, _WINDOW_S, nx=True)
        pipe.ttl(key)
        count, _, ttl_s = (int(reply) for reply in pipe.execute())
        if count <= _MAX_FAILED:
            return 0
        if len(self._blocked_until) >= _MAX_NETWORKS:
            self._blocked_until.clear()
        wait_s = max(1, ttl_s)
        self._blocked_until[network] = time.monotonic() + wait_s
        return wait_s


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found.packed, _IPV6_PREFIX), strict=False).network_address)
