"""Calls one script on a connection of its own, for a thread that calls it for every few tokens.

redis-py opens the connection and reads its replies; hiredis packs the call. That takes a third of
the CPU time of a call through a client: no pool, no retry policy, no check of the connection.
"""

from typing import Any

import hiredis
import redis
from redis.connection import ConnectionInterface

from shared.redis.scripts import load_script


class ScriptConnection:
    """Not thread-safe. The connection is opened by the first call, and again after an error."""

    def __init__(self, client: "redis.Redis", *parts: str) -> None:
        """Take one connection from the client's pool for good. `parts`: see `load_script`."""
        self._client = client
        self._script = load_script(client, *parts)
        self._connection: ConnectionInterface | None = None

    def call(self, keys: list[str], args: list[bytes | int | str]) -> Any:
        """Run the script; if the connection is lost, it may run twice: it must be one that may be
        repeated. Raises redis.RedisError."""
        command = _packed("EVALSHA", self._script.sha, len(keys), *keys, *args)
        try:
            return self._ask_connected(command)
        except redis.exceptions.NoScriptError:
            self._ask(_packed("SCRIPT", "LOAD", self._script.text))
        return self._ask(command)

    def _ask_connected(self, command: bytes) -> Any:
        try:
            return self._ask(command)
        except redis.ConnectionError:
            # It may have died while nothing was called. A server that was started again meanwhile
            # does not know the script either.
            return self._ask(command)

    def _ask(self, command: bytes) -> Any:
        if self._connection is None:
            self._connection = self._client.connection_pool.get_connection()
        # Both disconnect after whatever they raise but an error that the server has answered with:
        # a late or half-read reply is never taken for that of the next call.
        self._connection.send_packed_command(  # type: ignore[no-untyped-call]
            [command], check_health=False
        )
        return self._connection.read_response()


def _packed(*words: bytes | int | str) -> bytes:
    # hiredis declares a tuple of one word.
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return packed
