"""A Redis that refuses to write, as it does when its disk is full."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.conftest import wait_for


@contextmanager
def full_disk(client: redis.Redis, folder: Path) -> Iterator[None]:
    """Let a snapshot fail: `folder` is where the server would write it. Its answer to writes is the
    same as for an append-only file that cannot grow."""
    obstacle = folder / "dump.rdb"
    obstacle.mkdir()
    client.config_set("save", "3600 1000000")
    _save(client, "err")
    try:
        yield
    finally:
        obstacle.rmdir()
        _save(client, "ok")
        client.config_set("save", "")


def _save(client: redis.Redis, status: str) -> None:
    client.bgsave()

    def is_done() -> bool:
        found = client.info("persistence")
        return not found["rdb_bgsave_in_progress"] and found["rdb_last_bgsave_status"] == status

    wait_for(is_done, f"a snapshot: {status}")
