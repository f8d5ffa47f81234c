"""Memory of a request: of web process, Redis and replica, while it waits and while it streams."""

import statistics
import time
from collections.abc import Callable, Sequence

import msgspec
import redis
from msgspec import Struct

from bench import lone_web, measure, scenarios, servers
from bench.crowd import Crowd, raise_descriptor_limit
from bench.processes import cpu_seconds, resident_bytes
from bench.report import table
from bench.servers import ServedModel, Server
from shared import names

_MODEL = "memory"
QUEUED = (100, 1_000, 10_000)
PROMPT_BYTES = (10, 8_192)
ACTIVE = (8, 32, 64)
_CONTEXT = 4_096
_LIMIT_S = 300.0
_CPU_WINDOW_S = 5.0
_SETTLE_S = 3.0


class Level(Struct, kw_only=True):
    """What is held while so many requests are open."""

    requests: int
    web_bytes: int
    """Resident memory of the web process and of the gunicorn process above it."""
    redis_bytes: int
    """`used_memory` without the buffers of connections and of the append-only file."""
    replica_bytes: int = 0
    web_cores: float = 0.0
    """Cores that the web process keeps busy meanwhile."""


class Growth(Struct, kw_only=True):
    """Levels, and the line along which they grow, in bytes a request."""

    levels: list[Level]
    web_slope: float
    redis_slope: float
    replica_slope: float
    log_bytes_per_token: float = 0.0
    """Of a finished job's log in Redis."""


def queued(
    counts: Sequence[int], prompt_sizes: Sequence[int], say: Callable[[str], None]
) -> dict[int, Growth]:
    """Prompt bytes → growth with the number of streams that wait in the queue of one web
    process. No replica ever sees them."""
    raise_descriptor_limit()
    return {size: _queued(counts, size, say) for size in prompt_sizes}


def _queued(counts: Sequence[int], prompt_bytes: int, say: Callable[[str], None]) -> Growth:
    limits = f"web_connections = {max(counts) + 100}\nmax_queue_length = {max(counts) + 100}"
    with (
        lone_web.running("memory", _MODEL, "memory@bench", limits) as (server, redis_url),
        redis.Redis.from_url(redis_url) as client,
    ):
        _warm_up(server, client)
        levels = [_level(server, client, 0)]
        with Crowd(server.port) as crowd:
            for count in counts:
                crowd.add(count - levels[-1].requests, _body("5" * prompt_bytes, 16))
                _read_until(crowd, lambda count=count: _num_queued(client) == count, "queued")
                _read_until(crowd, lambda count=count: crowd.num_answered == count, "answered")
                before_s = cpu_seconds(server.pid)["web"]
                crowd.read(_CPU_WINDOW_S)
                level = _level(server, client, count)
                level.web_cores = (cpu_seconds(server.pid)["web"] - before_s) / _CPU_WINDOW_S
                levels.append(level)
                say(f"  {count:,} queued, prompts of {prompt_bytes} bytes: {_kb_each(levels)}")
    return _growth(levels)


def active(counts: Sequence[int], say: Callable[[str], None]) -> Growth:
    """Growth with the number of streams that a replica generates at the same time."""
    model = ServedModel(_MODEL, servers.counter_file(), max(counts), _CONTEXT)
    levels = []
    with servers.llmis(model) as server:
        url = (servers.FOLDER / "llmis" / "redis.url").read_text().strip()
        with redis.Redis.from_url(url) as client:
            # Once to the last cell of the KV cache, which belongs to the model, not to a request.
            load = scenarios.counter_load(max(counts), _CONTEXT - 10, 1)
            measure.run_load(load.plan(model, server))
            log_bytes = sum(client.memory_usage(key, samples=0) for key in _logs(client))
            _forget_jobs(client)
            levels.append(_level(server, client, 0))
            for count in counts:
                with Crowd(server.port) as crowd:
                    crowd.add(count, _body("5", _CONTEXT - 10))
                    _read_until(crowd, lambda c=count: crowd.num_answered == c, "answered")
                    crowd.read(1.0)
                    levels.append(_level(server, client, count))
                _forget_jobs(client)
                say(f"  {count} active: {_kb_each(levels)}")
    growth = _growth(levels)
    growth.log_bytes_per_token = log_bytes / (max(counts) * (_CONTEXT - 10))
    return growth


def memory_table(of_queued: dict[int, Growth], of_active: Growth) -> str:
    """A row for each level; KB are of 1,000 bytes, above the level without requests."""
    rows = [["requests", "prompt", "web KB each", "Redis KB each", "replica KB each", "web cores"]]
    for size, growth in of_queued.items():
        rows += _rows(growth, "queued", f"{size} bytes")
    rows += _rows(of_active, "active", "1 byte")
    per_token = f"log in Redis: {of_active.log_bytes_per_token:.1f} bytes a token"
    return f"{table(rows)}\n{per_token}"


def _rows(growth: Growth, state: str, prompt: str) -> list[list[str]]:
    base, *levels = growth.levels
    rows = []
    for level in levels:
        fields = ("web_bytes", "redis_bytes", "replica_bytes")
        each = [(getattr(level, f) - getattr(base, f)) / level.requests / 1000 for f in fields]
        cells = [f"{kb:,.1f}" for kb in each]
        rows.append([f"{level.requests:,} {state}", prompt, *cells, f"{level.web_cores:.2f}"])
    slopes = (growth.web_slope, growth.redis_slope, growth.replica_slope)
    return [*rows, ["each more", prompt, *(f"{slope / 1000:,.1f}" for slope in slopes), ""]]


# -- one level -------------------------------------------------------------------------------


def _level(server: Server, client: "redis.Redis", requests: int) -> Level:
    resident, of_redis = resident_bytes(server.pid), client.info("memory")
    return Level(
        requests=requests,
        web_bytes=resident["web"],
        redis_bytes=of_redis["used_memory"]
        - of_redis["mem_clients_normal"]
        - of_redis["mem_aof_buffer"],
        replica_bytes=resident.get("replica", 0),
    )


def _growth(levels: list[Level]) -> Growth:
    def slope(field: str) -> float:
        counts = [level.requests for level in levels]
        return statistics.linear_regression(counts, [getattr(lv, field) for lv in levels]).slope

    return Growth(
        levels=levels,
        web_slope=slope("web_bytes"),
        redis_slope=slope("redis_bytes"),
        replica_slope=slope("replica_bytes"),
    )


def _kb_each(levels: list[Level]) -> str:
    base, level = levels[0], levels[-1]
    web = (level.web_bytes - base.web_bytes) / level.requests / 1000
    of_redis = (level.redis_bytes - base.redis_bytes) / level.requests / 1000
    return f"web {web:.1f} KB each, Redis {of_redis:.1f}, web cores {level.web_cores:.2f}"


# -- the requests ----------------------------------------------------------------------------


def _body(prompt: str, max_tokens: int) -> bytes:
    body = {"model": _MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return msgspec.json.encode({**body, "stream": True})


def _num_queued(client: "redis.Redis") -> int:
    return sum(client.llen(name) for name in names.priority_lists(_MODEL))


def _warm_up(server: Server, client: "redis.Redis") -> None:
    """The first requests import, compile and connect."""
    with Crowd(server.port) as crowd:
        crowd.add(20, _body("5", 16))
        _read_until(crowd, lambda: _num_queued(client) == 20, "queued")
    client.delete(*names.priority_lists(_MODEL))
    _forget_jobs(client)


def _read_until(crowd: Crowd, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the requests are not all {what} after {_LIMIT_S:g} s")
        crowd.read(0.2)


def _logs(client: "redis.Redis") -> list[bytes]:
    return list(client.scan_iter(names.log_key("*")))


def _forget_jobs(client: "redis.Redis") -> None:
    """Delete what cancelled jobs have left in Redis, once they are over."""
    time.sleep(_SETTLE_S)
    for key in client.scan_iter(names.job_key("*")):
        client.delete(key)
