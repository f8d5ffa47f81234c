"""redis-py's client and pool, without what each command costs there beside the command itself.

redis-py reports each command to OpenTelemetry, and asks the system whether the connection that
leaves the pool is open. That is half of the CPU time of a command, and three quarters under gevent.
"""

import os
from queue import Empty, SimpleQueue
from typing import Any

import redis


class ConnectionPool(redis.BlockingConnectionPool):
    """Hands connections out in turn, as they lie here. One that died meanwhile is found by its next
    command, which redis-py and `Client` repeat. None has an unread reply: redis-py closes such
    ones. For threads and greenlets."""

    pool: "SimpleQueue[Any]"

    def reset(self) -> None:
        """Begin without connections: at the start, and in the child after a fork."""
        self._connections: list[Any] = []
        self.pool = SimpleQueue()
        self.pid = os.getpid()  # last: see redis-py

    def open(self) -> None:
        """Open all connections, so that a burst of commands opens none. Raises redis.RedisError."""
        taken = []
        try:
            for _ in range(self.max_connections):
                taken.append(self.get_connection())
                taken[-1].connect()
        finally:
            for connection in taken:
                self.release(connection)

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """Wait for a free connection. Its first command opens it, if it is closed. Raises
        redis.ConnectionError."""
        self._checkpid()
        try:
            return self.pool.get_nowait()
        except Empty:
            pass
        with self._lock:
            if len(self._connections) < self.max_connections:
                return self.make_connection()  # type: ignore[no-untyped-call]
        try:
            return self.pool.get(timeout=self.timeout)
        except Empty:
            raise redis.ConnectionError("No connection available.") from None

    def release(self, connection: Any) -> None:
        self._checkpid()
        if self.owns_connection(connection):
            self.pool.put(connection)
        else:
            connection.disconnect()


class Client(redis.Redis):
    """A client that repeats a command once whose connection was lost."""

    def execute_command(self, *words: Any, **options: Any) -> Any:
        """Raises redis.RedisError."""
        connection: Any = self.connection_pool.get_connection()
        try:
            try:
                return self._ask(connection, words, options)
            except (redis.ConnectionError, redis.TimeoutError):
                connection.disconnect()
                return self._ask(connection, words, options)
        finally:
            self.connection_pool.release(connection)

    def _ask(self, connection: Any, words: tuple[Any, ...], options: dict[str, Any]) -> Any:
        connection.send_command(*words)
        return self.parse_response(connection, words[0], **options)  # type: ignore[no-untyped-call]
