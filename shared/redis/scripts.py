"""Loads the Lua scripts of shared/lua by name: one file, or several that share functions.

Each script is one atomic change of the queue, a lease, a log or a counter. It makes no key's name:
its caller hands in all keys. The comment at its top lists KEYS and ARGV.
"""

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


def load_script(client: "redis.Redis", *parts: str, at_oom: bool = True) -> Any:
    """Register a script. With `at_oom` it also runs on a full Redis, else it is refused there
    before its first write."""
    return client.register_script((ALLOW_OOM if at_oom else _REFUSED_AT_OOM) + script_text(*parts))
