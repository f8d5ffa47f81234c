"""What a piece of code leaves in Redis: keys, types, fields of hashes, times to live."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from tests.contract.frozen_file import IS_FREEZING, assert_frozen, frozen_json

_RANDOM = (
    (re.compile(r"\b((?:un)?load)-[0-9a-f]{16}"), r"\1-ID"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"(llmis:hub:)[0-9a-f]{12}"), r"\1ID"),
)
"""Parts of keys and fields that differ each time."""


@dataclass(frozen=True, slots=True)
class _Life:
    """The time to live that a key was given lies between these, in seconds."""

    shortest_s: float
    longest_s: float


def assert_state_after(server: redis.Redis, name: str, step: Callable[[], object]) -> None:
    """Run `step` on an empty Redis; compare what is there afterwards with a frozen file.

    A time to live is known as well as the time is at which it was set: between the start of the
    step and now. So a slow machine never fails the test.
    """
    server.flushall()
    started_at = _now(server)
    step()
    known = {} if IS_FREEZING else frozen_json(name)
    found = {}
    for key in sorted(_text(member) for member in server.keys("*")):
        stable = _stable(key)
        assert stable not in found, f"two keys look like {stable}"
        found[stable] = _described(server, key, started_at, known.get(stable, {}))
    assert_frozen(name, found)


def _described(
    server: redis.Redis, key: str, started_at: float, known: dict[str, Any]
) -> dict[str, Any]:
    kind = _text(server.type(key))
    described: dict[str, Any] = {"type": kind, "ttl_s": None}
    if kind == "hash":
        described["fields"] = sorted({_stable(_text(field)) for field in server.hkeys(key)})
    life = _life(server, key, started_at)
    if life is not None:
        expected = known.get("ttl_s")
        is_right = expected is not None and life.shortest_s <= expected <= life.longest_s
        described["ttl_s"] = expected if is_right else math.ceil(life.shortest_s)
    return described


def _life(server: redis.Redis, key: str, started_at: float) -> _Life | None:
    expires_at = int(server.pexpiretime(key))
    if expires_at < 0:
        return None
    return _Life(expires_at / 1000 - _now(server), expires_at / 1000 - started_at)


def _now(server: redis.Redis) -> float:
    """Milliseconds as a part of seconds: Redis keeps times to live no finer."""
    seconds, micros = server.time()
    return seconds + micros // 1000 / 1000


def _stable(text: str) -> str:
    for pattern, replacement in _RANDOM:
        text = pattern.sub(replacement, text)
    return text


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
