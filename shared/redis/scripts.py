"""Loads the Lua scripts of shared/lua by name: one file, or several that share functions.

Each script is one atomic change of the queue, a lease, a log or a counter. It makes no key's name:
its caller hands in all keys. The comment at its top lists KEYS and ARGV.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from shared.redis.oom_writes import ALLOW_OOM

_LUA = Path(__file__).parent.parent / "lua"
_REFUSED_AT_OOM = "#!lua\n"
"""Without any such line Redis lets a script write on after a first write that took no memory."""


def script_text(*parts: str) -> str:
    """Join the files of these names, in this order; without the line of flags."""
    return "\n".join((_LUA / f"{part}.lua").read_text("utf-8") for part in parts)


class Script:
    """A script on the connections of a client. Redis gets its text when it does not know it."""

    def __init__(self, client: "redis.Redis", text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._client = client

    def __call__(self, keys: Sequence[Any] = (), args: Sequence[Any] = ()) -> Any:
        """Run it; if the connection is lost, it may run twice. Raises redis.RedisError."""
        words = ("EVALSHA", self.sha, len(keys), *keys, *args)
        try:
            return self._client.execute_command(*words)  # type: ignore[no-untyped-call]
        except redis.exceptions.NoScriptError:
            self._client.script_load(self.text)
            return self._client.execute_command(*words)  # type: ignore[no-untyped-call]


def load_script(client: "redis.Redis", *parts: str, at_oom: bool = True) -> Script:
    """With `at_oom` the script also runs on a full Redis, else it is refused there before its first
    write."""
    return Script(client, (ALLOW_OOM if at_oom else _REFUSED_AT_OOM) + script_text(*parts))
