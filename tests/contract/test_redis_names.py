"""Names of keys, queues, channels and tasks, and the Lua scripts: what lies in Redis stays there
over an upgrade, and two versions share one Redis while one takes the other's place."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

from shared import names
from shared.queue.job_queue import JobQueue
from shared.queue.lease import JobLeases
from shared.redis.oom_writes import _at_oom
from shared.redis.scripts import Script
from shared.registry.running_operation import RunningOperation
from shared.wire.operations import OperationKind
from tests.contract.frozen_file import assert_frozen
from worker.replica.publisher import Publisher

_LUA = Path(__file__).parent.parent.parent / "shared" / "lua"
_ARGUMENTS: dict[str, Any] = {
    "digest": "d1",
    "job_id": "req-1",
    "kind": "load",
    "master_id": "master-1",
    "model": "m-1",
    "network": "192.0.2.1",
    "node": "n-1",
    "operation_id": "load-1",
    "owner": "key-1",
    "place": 2,
    "replica_id": "m-1@n-1-1-2",
    "text": "req-1",
    "web_id": "w-1",
}


def test_every_function_for_fixed_arguments() -> None:
    found = {}
    for name, function in inspect.getmembers(names, inspect.isfunction):
        given = [_ARGUMENTS[parameter] for parameter in inspect.signature(function).parameters]
        found[name] = function(*given)
    assert_frozen("redis/names.json", found)


def test_every_constant() -> None:
    found = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in vars(names).items()
        if name.isupper() and not name.startswith("_")
    }
    assert_frozen("redis/constants.json", found)


def test_what_is_a_request_id() -> None:
    texts = ["a", "a-b_c.D9", "a" * 128, "", "-a", ".a", "a" * 129, "a b", "a/b", "a:b", "é", "a\n"]
    assert_frozen("redis/request_ids.json", {text: names.is_request_id(text) for text in texts})


# -- scripts -------------------------------------------------------------------------------------


class _Recorder:
    """In place of a client: keeps the texts of the scripts that it is asked to run."""

    def __init__(self) -> None:
        self.scripts: list[str] = []

    def eval(self, text: str, *_: Any) -> int:
        self.scripts.append(text)
        return 1


def _texts(owner: Any) -> list[str]:
    return [value.text for value in vars(owner).values() if isinstance(value, Script)]


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def test_the_files_of_the_scripts() -> None:
    files = {file.name: _sha1(file.read_text("utf-8")) for file in _LUA.iterdir()}
    assert_frozen("redis/lua_files.json", files)


def test_the_scripts_as_the_server_knows_them() -> None:
    """With their first line, which says whether they run on a full Redis."""
    operations, writes = _Recorder(), _Recorder()
    queue = JobQueue(operations, 60)  # type: ignore[arg-type]
    publisher = Publisher(operations, 1, 1.0)  # type: ignore[arg-type]
    leases = JobLeases(operations, "r", job_ttl_s=1, running_ttl_s=2)  # type: ignore[arg-type]
    operation = RunningOperation(operations, OperationKind.LOAD, "load-1", "m")  # type: ignore[arg-type]
    assert operation.remember(None)
    operation._free_lock()
    writes.scripts.append(_at_oom(("SET", "key", "value"))[1])
    found = {
        "job queue": sorted(_sha1(text) for text in _texts(queue)),
        "append events": [_sha1(text) for text in _texts(publisher._append)],
        "leases": [_sha1(text) for text in _texts(leases)],
        "write on a full Redis": [_sha1(text) for text in writes.scripts],
        "remember a model, unlock": [_sha1(text) for text in operations.scripts],
    }
    assert_frozen("redis/scripts.json", found)
