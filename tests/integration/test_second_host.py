"""A second host joins, serves, leaves and is cut off. It is a network namespace."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import TEST_FILES, Service, running_service, wait_for
from tests.support.admin_client import Completion, admin, load, model, unload, wait_for_state
from tests.support.counter_model import expected_text
from tests.support.second_host import SecondHost, can_make_namespaces, second_host, shared_redis

pytestmark = pytest.mark.skipif(
    not can_make_namespaces, reason="needs root and iproute2 for a network namespace"
)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, SecondHost]]:
    folder = tmp_path_factory.mktemp("hosts")
    with (
        shared_redis(folder) as url,
        second_host(url, folder / "second") as second,
        running_service(folder, environ={"REDIS_URL": url, "LLMIS_NODE_NAME": "first"}) as first,
    ):
        yield first, second


def _nodes(service: Service) -> list[str]:
    return sorted(node["id"] for node in admin(service, "/nodes")[1]["data"])


def _where(service: Service, name: str) -> list[str]:
    view: Any = model(service, name)
    return sorted(r["node"] for r in view["replicas"] if r["state"] == "ready") if view else []


def test_a_second_host_joins_serves_and_leaves(hosts: tuple[Service, SecondHost]) -> None:
    service, second = hosts
    assert _nodes(service) == ["first"]
    second.join()
    wait_for(lambda: _nodes(service) == ["first", "second"], "it has joined")

    assert load(service, "there", node="second")[0] == 200
    assert _where(service, "there") == ["second"]
    assert Completion(service, "there", 300).read().text == expected_text(5, 300)

    assert load(service, "both", replicas=2, slots=1)[0] == 200
    assert _where(service, "both") == ["first", "second"]
    streams = [Completion(service, "both", 300, start) for start in range(6)]
    assert [s.read().text for s in streams] == [expected_text(n, 300) for n in range(6)]

    _refused_elsewhere(service)

    second.leave()
    wait_for(lambda: _nodes(service) == ["first"], "it has left")
    # What was loaded there alone comes here with the next request for it.
    assert Completion(service, "there", 20).read().text == expected_text(5, 20)
    assert _where(service, "there") == ["first"]
    assert _where(service, "both") == ["first"]
    for name in ("there", "both"):
        assert unload(service, name)[0] == 200


def _refused_elsewhere(service: Service) -> None:
    """A load that one node refuses is no failure of a model that another one serves."""
    models = TEST_FILES / "models"
    shutil.copy(models / "counter.gguf", models / "roaming.gguf")
    assert load(service, "roaming", path="roaming.gguf", node="second")[0] == 200
    (models / "roaming.gguf").unlink()
    stream = Completion(service, "roaming", 400)
    assert load(service, "roaming", path="roaming.gguf", node="first")[0] == 422
    assert stream.read().text == expected_text(5, 400)
    view: Any = model(service, "roaming")
    assert (view["state"], view["error"]) == ("ready", None)
    assert unload(service, "roaming")[0] == 200


def test_a_host_that_is_cut_off_is_replaced(hosts: tuple[Service, SecondHost]) -> None:
    service, second = hosts
    second.join()
    wait_for(lambda: _nodes(service) == ["first", "second"], "it has joined")
    assert load(service, "far", node="second")[0] == 200
    second.cut()
    wait_for(lambda: _nodes(service) == ["first"], "it is gone from the registry", 8)
    assert Completion(service, "far", 20).read().text == expected_text(5, 20)
    assert _where(service, "far") == ["first"]
    second.mend()
    wait_for(lambda: _nodes(service) == ["first", "second"], "it is back")
    wait_for_state(service, "far", "ready")
    assert unload(service, "far")[0] == 200
    assert _where(service, "far") == []
