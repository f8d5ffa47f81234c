"""Redis connections that let other greenlets run while they wait, without a patched process."""

import gevent.socket
import redis
from redis.connection import UnixDomainSocketConnection


class _Connection(UnixDomainSocketConnection):
    def _connect(self) -> gevent.socket.socket:
        sock = gevent.socket.socket(gevent.socket.AF_UNIX, gevent.socket.SOCK_STREAM)
        sock.connect(self.path)
        return sock


def client(socket_path: str) -> "redis.Redis":
    """A client as the web tier makes one: replies as bytes, RESP2."""
    pool = redis.ConnectionPool(connection_class=_Connection, path=socket_path, protocol=2)
    return redis.Redis(connection_pool=pool)
