"""Loads and unloads in Redis: one at a time for each model, their progress, and how they end."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis

from shared import names
from shared.errors import InsufficientMemory, ModelFailed
from shared.model_spec import ModelSpec
from shared.registry import operations
from shared.registry.running_operation import RunningOperation
from shared.wire import codec
from shared.wire.codec import DecodeError
from shared.wire.operations import (
    STAGES,
    Failure,
    LoadCommand,
    OperationKind,
    OperationProgress,
    OperationState,
    UnloadCommand,
)
from tests.support.registry_records import make_spec

LOAD, UNLOAD = OperationKind.LOAD, OperationKind.UNLOAD
LOAD_LOCK = names.operation_lock_key(LOAD, "m")
UNLOAD_LOCK = names.operation_lock_key(UNLOAD, "m")
FAILURE = Failure(status=503, code="model_failed", message="It broke.")


def _begin_load(client: redis.Redis, spec: ModelSpec | None = None) -> tuple[str, bool]:
    return operations.begin_load(
        client,
        spec or make_spec(),
        replicas=2,
        nodes=["n1", "n2"],
        node="n1",
        deadline_at=7.0,
        is_on_demand=True,
        replaces="old",
    )


def _load(client: redis.Redis) -> RunningOperation:
    """A load of `m` that has begun."""
    operation_id, is_new = _begin_load(client)
    assert is_new
    return RunningOperation(client, LOAD, operation_id, "m")


def _begin_unload(client: redis.Redis, grace_s: float = 5.0) -> tuple[str, bool]:
    return operations.begin_unload(
        client, "m", grace_s=grace_s, is_draining=True, is_forgotten=True, num_nodes=2
    )


def _unload(client: redis.Redis, grace_s: float = 5.0) -> RunningOperation:
    operation_id, is_new = _begin_unload(client, grace_s)
    assert is_new
    return RunningOperation(client, UNLOAD, operation_id, "m")


def _last(client: redis.Redis, operation: RunningOperation) -> OperationProgress:
    (last,) = operations.progress(client, operation.id, -1)
    return last


def _stages(client: redis.Redis, operation: RunningOperation) -> list[str]:
    return [event.stage for event in operations.progress(client, operation.id)]


class _Scripted(redis.Redis):
    """Calls `after` with the name and key of each command that it has sent outside of a
    pipeline."""

    after: Callable[[str, str], None] | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        if self.after is not None:
            self.after(args[0], args[1])
        return reply


@pytest.fixture
def scripted(redis_socket: str) -> Iterator[_Scripted]:
    client = _Scripted(unix_socket_path=redis_socket)
    yield client
    client.close()


# -- begin -----------------------------------------------------------------------------------


def test_a_load_begins_with_its_command_its_lock_and_a_first_event(server: redis.Redis) -> None:
    load = _load(server)
    assert operations.read_load(server, load.id) == LoadCommand(
        id=load.id,
        spec=make_spec(),
        replicas=2,
        nodes=["n1", "n2"],
        node="n1",
        is_on_demand=True,
        deadline_at=7.0,
        replaces="old",
    )
    assert server.get(LOAD_LOCK) == load.id.encode()
    assert _last(server, load) == OperationProgress(
        id=load.id,
        kind=LOAD,
        model="m",
        state=OperationState.LOADING,
        stage="checking",
        fraction=0.0,
    )


def test_an_unload_begins_with_its_command_and_its_lock(server: redis.Redis) -> None:
    unload = _unload(server)
    assert operations.read_unload(server, unload.id) == UnloadCommand(
        id=unload.id, model="m", grace_s=5.0, is_draining=True, is_forgotten=True, num_nodes=2
    )
    assert server.get(UNLOAD_LOCK) == unload.id.encode()
    assert _last(server, unload).state is OperationState.UNLOADING


def test_what_belongs_to_an_operation_expires(server: redis.Redis) -> None:
    load = _load(server)
    for key in (LOAD_LOCK, names.command_key(load.id), names.progress_key(load.id)):
        assert int(server.ttl(key)) > 0  # type: ignore[arg-type]


def test_a_load_that_is_under_way_is_joined_and_leaves_no_second_command(
    server: redis.Redis,
) -> None:
    load = _load(server)
    commands = set(server.keys())  # type: ignore[arg-type]
    assert _begin_load(server, make_spec(slots=9)) == (load.id, False)
    assert set(server.keys()) == commands  # type: ignore[arg-type]
    command = operations.read_load(server, load.id)
    assert command is not None and command.spec == make_spec()


def test_loads_of_two_models_do_not_wait_for_each_other(server: redis.Redis) -> None:
    _load(server)
    _, is_new = _begin_load(server, make_spec("other"))
    assert is_new


def test_a_load_whose_lock_has_expired_is_not_joined(server: redis.Redis) -> None:
    load = _load(server)
    server.delete(LOAD_LOCK)
    operation_id, is_new = _begin_load(server)
    assert is_new and operation_id != load.id


def test_a_lock_that_expires_while_it_is_asked_for_is_taken(
    server: redis.Redis, scripted: _Scripted
) -> None:
    def expire(command: str, key: str) -> None:
        if (command, key) == ("SET", LOAD_LOCK):
            scripted.after = None
            server.delete(LOAD_LOCK)

    _load(server)
    scripted.after = expire
    operation_id, is_new = _begin_load(scripted)
    assert is_new and server.get(LOAD_LOCK) == operation_id.encode()


def test_a_lock_that_comes_and_goes_is_an_error_of_redis(
    server: redis.Redis, scripted: _Scripted
) -> None:
    """Each time somebody else has the lock, and has let it go before its holder can be read."""

    def flicker(command: str, key: str) -> None:
        if (command, key) == ("SET", LOAD_LOCK):
            server.delete(LOAD_LOCK)
        elif (command, key) == ("GET", LOAD_LOCK):
            server.set(LOAD_LOCK, "another")

    server.set(LOAD_LOCK, "another")
    scripted.after = flicker
    with pytest.raises(redis.RedisError, match="three times in a row"):
        _begin_load(scripted)


# -- an unload breaks a load off -------------------------------------------------------------


def test_an_unload_breaks_off_a_load_that_is_under_way(server: redis.Redis) -> None:
    load = _load(server)
    _unload(server)
    assert not load.renew()
    assert operations.is_lost(server, _last(server, load))


def test_an_unload_that_is_joined_leaves_the_load_that_has_begun_since(server: redis.Redis) -> None:
    """A request that waits for a configured model has begun it."""
    unload = _unload(server)
    load = _load(server)
    assert _begin_unload(server) == (unload.id, False)
    assert load.renew()


def test_an_unload_at_once_takes_over_from_one_that_drains(server: redis.Redis) -> None:
    draining = _unload(server)
    at_once = _unload(server, grace_s=0.0)
    assert (draining.renew(), at_once.renew()) == (False, True)


def test_a_load_that_was_broken_off_is_not_remembered(server: redis.Redis) -> None:
    load = _load(server)
    server.hset(names.FAILURES, "m", "an old one")
    _unload(server)
    assert not load.finish_load(make_spec())
    assert server.hgetall(names.MODELS) == {}
    assert server.hexists(names.FAILURES, "m"), "it says nothing of the model"
    assert not _last(server, load).is_ended, "its node says why"


# -- progress --------------------------------------------------------------------------------


def test_a_stage_has_its_fraction_unless_another_is_given(server: redis.Redis) -> None:
    load = _load(server)
    load.report("spawning")
    load.report("reading weights", 0.12345, "half")
    load.report("a stage of its own")
    found = [(e.stage, e.fraction, e.message) for e in operations.progress(server, load.id, 1)]
    assert found == [
        ("spawning", STAGES["spawning"], ""),
        ("reading weights", 0.123, "half"),
        ("a stage of its own", 0.0, ""),
    ]


def test_a_report_without_news_is_not_written(server: redis.Redis) -> None:
    load = _load(server)
    for stage in ("spawning", "spawning", "checking", "spawning"):
        load.report(stage)
    assert _stages(server, load) == ["checking", "spawning", "checking", "spawning"]


def test_a_follower_reads_on_from_where_it_is(server: redis.Redis) -> None:
    load = _load(server)
    load.report("spawning")
    load.finish()
    assert [e.stage for e in operations.progress(server, load.id, 1)] == ["spawning", "ready"]
    assert [e.stage for e in operations.progress(server, load.id, -1)] == ["ready"]
    assert operations.progress(server, load.id, 3) == []


def test_an_unknown_operation_has_no_progress_and_no_command(server: redis.Redis) -> None:
    assert operations.progress(server, "load-none") == []
    assert operations.read_load(server, "load-none") is None
    assert operations.read_unload(server, "load-none") is None


# -- the lock --------------------------------------------------------------------------------


def test_working_on_an_operation_renews_its_lock(server: redis.Redis) -> None:
    load = _load(server)
    server.expire(LOAD_LOCK, 5)
    assert load.renew()
    assert int(server.ttl(LOAD_LOCK)) > 5  # type: ignore[arg-type]


def test_an_operation_whose_lock_has_expired_is_not_revived(server: redis.Redis) -> None:
    load = _load(server)
    server.delete(LOAD_LOCK)
    assert not load.renew()
    assert not server.exists(LOAD_LOCK)


def test_the_lock_of_a_later_operation_is_not_renewed(server: redis.Redis) -> None:
    load = _load(server)
    server.set(LOAD_LOCK, "later", ex=5)
    assert not load.renew()
    assert 0 < int(server.ttl(LOAD_LOCK)) <= 5  # type: ignore[arg-type]


def test_only_the_kind_and_model_of_an_operation_are_under_way(server: redis.Redis) -> None:
    _load(server)
    assert operations.is_under_way(server, LOAD, "m")
    assert not operations.is_under_way(server, UNLOAD, "m")
    assert not operations.is_under_way(server, LOAD, "other")


def test_an_operation_is_lost_when_another_has_its_lock_or_none(server: redis.Redis) -> None:
    load = _load(server)
    last = _last(server, load)
    assert not operations.is_lost(server, last)
    server.set(LOAD_LOCK, "later")
    assert operations.is_lost(server, last)
    server.delete(LOAD_LOCK)
    assert operations.is_lost(server, last)


def test_a_lost_operation_ends_for_its_readers_with_a_failure(server: redis.Redis) -> None:
    load = _load(server)
    load.report("spawning")
    end = operations.lost(_last(server, load))
    assert end.is_ended and end.state is OperationState.FAILED
    assert (end.id, end.stage) == (load.id, "failed")
    assert end.failure is not None and isinstance(end.failure.error(), ModelFailed)
    assert end.message == end.failure.message and "load of 'm'" in end.message
    assert end.failure.retry_at == end.failure.at, "nothing keeps the next request from a load"


# -- the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "state"), [(_load, OperationState.READY), (_unload, OperationState.UNLOADED)]
)
def test_an_operation_that_is_finished_frees_its_lock(
    server: redis.Redis, begin: Any, state: OperationState
) -> None:
    operation = begin(server)
    operation.finish()
    last = _last(server, operation)
    assert (last.state, last.stage, last.fraction) == (state, state.value, 1.0)
    assert not operations.is_under_way(server, operation.kind, "m")
    assert server.smembers(names.OPERATIONS_IN_FLIGHT) == set()


def test_an_operation_that_fails_says_why_and_frees_its_lock(server: redis.Redis) -> None:
    load = _load(server)
    load.fail(FAILURE)
    last = _last(server, load)
    assert (last.state, last.failure, last.message) == (OperationState.FAILED, FAILURE, "It broke.")
    assert not operations.is_under_way(server, LOAD, "m")
    assert _begin_load(server)[1]


def test_an_operation_that_is_over_leaves_the_lock_of_a_later_one(server: redis.Redis) -> None:
    load = _load(server)
    server.delete(LOAD_LOCK)
    later = _load(server)
    load.fail(FAILURE)
    assert _last(server, load).is_ended, "its readers are told all the same"
    assert later.renew()
    assert operations.in_flight(server)[LOAD, "m"].id == later.id


def test_an_operation_that_takes_the_lock_while_an_earlier_one_ends_keeps_it(
    server: redis.Redis, scripted: _Scripted
) -> None:
    """The lock changes hands right behind the first command that looks at it."""
    load = RunningOperation(scripted, LOAD, _load(server).id, "m")

    def take_over(_command: str, _key: str) -> None:
        if _last(server, load).is_ended:
            scripted.after = None
            server.delete(LOAD_LOCK)
            _load(server)

    scripted.after = take_over
    load.finish()
    assert operations.is_under_way(server, LOAD, "m")
    assert (LOAD, "m") in operations.in_flight(server)


def test_a_load_that_is_finished_is_remembered_and_its_old_failure_forgotten(
    server: redis.Redis,
) -> None:
    load = _load(server)
    server.hset(names.FAILURES, "m", "an old one")
    assert load.finish_load(make_spec())
    payload: Any = server.hget(names.MODELS, "m")
    assert codec.decode(payload, ModelSpec) == make_spec()
    assert not server.hexists(names.FAILURES, "m")
    assert _last(server, load).state is OperationState.READY


def test_a_configured_model_is_not_remembered(server: redis.Redis) -> None:
    """Its settings say how to load it."""
    load = _load(server)
    server.hset(names.FAILURES, "m", "an old one")
    assert load.finish_load(None)
    assert not server.hexists(names.MODELS, "m")
    assert not server.hexists(names.FAILURES, "m")


def test_a_model_is_remembered_before_its_load_ends(server: redis.Redis) -> None:
    load = _load(server)
    assert load.remember(make_spec())
    assert server.hexists(names.MODELS, "m")
    assert load.renew() and not _last(server, load).is_ended


# -- from node to node -----------------------------------------------------------------------


def test_a_command_is_rewritten_for_the_next_node(server: redis.Redis) -> None:
    load = _load(server)
    command = operations.read_load(server, load.id)
    assert command is not None
    following = msgspec.structs.replace(command, nodes=["n2"], no_room_on=["n1"], refusal=FAILURE)
    operations.rewrite(server, following)
    assert operations.read_load(server, load.id) == following
    assert int(server.ttl(names.command_key(load.id))) > 0  # type: ignore[arg-type]


def test_the_last_node_ends_an_unload(server: redis.Redis) -> None:
    unload = _unload(server)
    command = operations.read_unload(server, unload.id)
    assert command is not None
    assert [operations.count_down(server, command) for _ in range(2)] == [False, True]
    other = msgspec.structs.replace(command, id="unload-other")
    assert not operations.count_down(server, other)


# -- in flight -------------------------------------------------------------------------------


def test_each_operation_that_is_under_way_is_in_flight_with_its_last_event(
    server: redis.Redis,
) -> None:
    load = _load(server)
    load.report("spawning")
    unload = operations.begin_unload(
        server, "a:b", grace_s=1.0, is_draining=False, is_forgotten=False, num_nodes=1
    )
    found = operations.in_flight(server)
    assert {key: (event.id, event.stage) for key, event in found.items()} == {
        (LOAD, "m"): (load.id, "spawning"),
        (UNLOAD, "a:b"): (unload[0], "checking"),
    }


def test_the_loads_of_a_node_are_those_that_it_has_to_carry_out_now(server: redis.Redis) -> None:
    load = _load(server)
    assert operations.loads_of(server, "n1") == [load.id]
    assert operations.loads_of(server, "n2") == []
    command = operations.read_load(server, load.id)
    assert command is not None
    operations.rewrite(server, msgspec.structs.replace(command, nodes=["n2", "n1"]))
    assert operations.loads_of(server, "n1") == []
    assert operations.loads_of(server, "n2") == [load.id]
    load.finish()
    assert operations.loads_of(server, "n2") == []


def test_nothing_is_in_flight_in_an_empty_redis(server: redis.Redis) -> None:
    assert operations.in_flight(server) == {}


def test_an_operation_that_was_lost_is_forgotten(server: redis.Redis) -> None:
    _load(server)
    server.delete(LOAD_LOCK)
    assert operations.in_flight(server) == {}
    assert server.smembers(names.OPERATIONS_IN_FLIGHT) == set()


def test_an_operation_that_was_forgotten_by_mistake_is_put_back_by_its_worker(
    server: redis.Redis,
) -> None:
    """It began between two looks of the process that found its model's lock gone."""
    load = _load(server)
    server.srem(names.OPERATIONS_IN_FLIGHT, "load:m")
    assert operations.in_flight(server) == {}
    assert load.renew()
    assert (LOAD, "m") in operations.in_flight(server)


def test_an_operation_that_has_said_its_last_is_not_in_flight(server: redis.Redis) -> None:
    """Between its final event and the end of its lock."""
    load = _load(server)
    load.finish()
    server.set(LOAD_LOCK, load.id)
    server.sadd(names.OPERATIONS_IN_FLIGHT, "load:m")
    assert operations.in_flight(server) == {}


def test_an_operation_that_has_not_said_anything_yet_is_not_in_flight(server: redis.Redis) -> None:
    """Between its lock and its first event. It is not forgotten for that."""
    server.set(LOAD_LOCK, "load-new")
    server.sadd(names.OPERATIONS_IN_FLIGHT, "load:m")
    assert operations.in_flight(server) == {}
    assert server.smembers(names.OPERATIONS_IN_FLIGHT) == {b"load:m"}


def test_undecodable_progress_does_not_hide_the_other_operations(
    server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    load = _load(server)
    _begin_load(server, make_spec("other"))
    server.rpush(names.progress_key(load.id), b"\xc1")
    assert list(operations.in_flight(server)) == [(LOAD, "other")]
    assert "undecodable progress of load:m" in caplog.text
    with pytest.raises(DecodeError):
        operations.progress(server, load.id)


# -- failures --------------------------------------------------------------------------------


def test_a_failure_is_the_error_that_it_was_made_of() -> None:
    error = InsufficientMemory("No room.", param="path")
    failure = operations.failure_of(error, 30.0)
    rebuilt = failure.error()
    assert type(rebuilt) is InsufficientMemory
    assert (rebuilt.message, rebuilt.param, rebuilt.body()) == ("No room.", "path", error.body())
    assert failure.retry_at == failure.at + 30.0
