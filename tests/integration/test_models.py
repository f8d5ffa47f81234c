"""Models are loaded, refused and unloaded while others serve."""

import shutil
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import TEST_FILES, Service, wait_for
from tests.support.admin_client import (
    Completion,
    admin,
    load,
    model,
    progress,
    read_together,
    unload,
    wait_for_state,
)
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed, stopped
from tests.support.threads import Client

_STAGES = ["checking", "spawning", "reading weights", "warming up", "ready"]


@pytest.fixture
def name(service: Service, request: pytest.FixtureRequest) -> Any:
    """A model name of the test's own, unloaded at its end."""
    chosen = f"m-{abs(hash(request.node.name)) % 10**8}"
    yield chosen
    if model(service, chosen) is not None:
        unload(service, chosen, mode="now")


def test_two_models_are_loaded_at_run_time_and_answer_at_once(service: Service, name: str) -> None:
    other = f"{name}-b"
    status, answer = load(service, name)
    assert (status, answer["state"], answer["fraction"]) == (200, "ready", 1.0)
    assert load(service, other)[0] == 200
    streams = [Completion(service, m, 400, start) for m, start in ((name, 5), (other, 700))]
    assert [stream.read().text for stream in streams] == [
        expected_text(5, 400),
        expected_text(700, 400),
    ]
    assert unload(service, other)[1]["state"] == "unloaded"
    assert Completion(service, other, 3).read().error["code"] == "model_not_found"
    assert Completion(service, name, 3).read().text == expected_text(5, 3)


def test_the_progress_of_a_load_is_streamed(service: Service, name: str) -> None:
    body = {"name": name, "path": "counter.gguf", "context_length": 512, "slots": 2}
    events = list(progress(service, "/models/load", body))
    stages = list(dict.fromkeys(event["stage"] for event in events))
    assert [stage for stage in _STAGES if stage in stages] == stages
    assert {"checking", "spawning", "ready"} <= set(stages)
    fractions = [event["fraction"] for event in events]
    assert fractions == sorted(fractions)
    assert events[-1]["state"] == "ready"
    assert all(event["error"] is None for event in events)


def test_loading_what_is_loaded_is_done_at_once_and_otherwise_a_conflict(
    service: Service, name: str
) -> None:
    assert load(service, name)[0] == 200
    assert load(service, name)[0] == 200
    view = model(service, name)
    assert len(view["replicas"]) == 1
    status, answer = load(service, name, slots=3)
    assert (status, answer["error"]["param"]) == (409, "slots")
    status, answer = load(service, "counter", path="other.gguf", slots=64, context_length=2048)
    assert (status, answer["error"]["param"]) == (409, "path")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"name": "a/b"}, 400, "name"),
        ({"name": "-a"}, 400, "name"),
        ({"name": "x" * 97}, 400, "name"),
        ({"name": "x", "path": "../../../etc/passwd"}, 422, "path"),
        ({"name": "x", "path": "/etc/passwd"}, 422, "path"),
        ({"name": "x", "path": "nothing.gguf"}, 422, "path"),
        ({"name": "x", "path": "a\0b"}, 400, "path"),
        ({"name": "x", "path": None}, 400, "path"),
        ({"name": "x", "engine": "other"}, 422, "engine"),
        ({"name": "x", "quant": "q1"}, 422, "quant"),
        ({"name": "x", "device": "cuda:0"}, 422, "device"),
        ({"name": "x", "path": "."}, 422, "device"),  # a folder is for the GPU's engine
        ({"name": "x", "slots": 0}, 400, "slots"),
        ({"name": "x", "package": "os"}, 400, "package"),
        ({"name": "x", "node": "nowhere"}, 503, None),
    ],
)
def test_a_bad_load_is_refused(service: Service, body: Any, status: int, param: str) -> None:
    got, answer = load(service, **body)
    assert (got, answer["error"]["param"]) == (status, param), answer
    assert not service.pids("worker.replica", " x@")


def test_a_page_of_another_origin_cannot_load_models(service: Service) -> None:
    """A browser sends these types without asking first."""
    import http.client

    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        connection.request("POST", "/admin/models/load", "{}", {"Content-Type": media_type})
        assert connection.getresponse().status == 415


def test_damaged_files_are_refused_before_anything_is_spawned(service: Service) -> None:
    models = TEST_FILES / "models"
    whole = (models / "counter.gguf").read_bytes()
    cases = {"cut": whole[: len(whole) // 2], "head": whole[:40], "text": b"not a model at all"}
    for kind, content in cases.items():
        (models / f"{kind}.gguf").write_bytes(content)
        status, answer = load(service, f"bad-{kind}", path=f"{kind}.gguf")
        assert (status, answer["error"]["code"]) == (422, "invalid_model"), kind
        assert not service.pids("worker.replica", f"bad-{kind}")
        (models / f"{kind}.gguf").unlink()


def test_a_link_out_of_the_model_folder_is_refused(service: Service, tmp_path: Path) -> None:
    shutil.copy(TEST_FILES / "models" / "counter.gguf", tmp_path / "outside.gguf")
    link = TEST_FILES / "models" / "link.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "outside.gguf")
    status, answer = load(service, "linked", path="link.gguf")
    link.unlink()
    assert (status, answer["error"]["param"]) == (422, "path")
    assert "leaves the model folder" in answer["error"]["message"]


def test_what_does_not_fit_is_refused_while_others_stream(service: Service) -> None:
    stream = Completion(service, "counter", 1900)
    stream.read(2)
    status, answer = load(service, "huge", context_length=4_000_000, slots=64)
    error = answer["error"]
    assert (status, error["code"]) == (507, "insufficient_memory")
    for word in ("needs about", "are free", "KV cache", "What would fit: context_length"):
        assert word in error["message"]
    assert stream.read().text == expected_text(5, 1900)
    assert model(service, "huge") is None


def test_what_the_refusal_says_would_fit_does_fit(service: Service, name: str) -> None:
    """With a context that fills the free memory, the advice must hold."""
    _, answer = load(service, name, context_length=4_000_000, slots=64)
    advice = answer["error"]["message"].partition("What would fit: context_length ")[2]
    assert int(advice.split()[0]) < 4_000_000
    slots = advice.partition(", or ")[2].split()[0]
    assert int(slots) < 64


def test_unloading_waits_for_the_streams_that_run(service: Service, name: str) -> None:
    load(service, name, context_length=2048)
    (replica,) = service.pids("worker.replica", f"{name}@")
    with slowed(replica):
        streams = [Completion(service, name, 1500, start).read(1) for start in (5, 300)]
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(unload(service, name)))
    with stopped(replica):
        waiting = Client(service, name, 500, 40)  # both slots are busy: it is queued
        wait_for(lambda: service.num_queued(name) == 1, "it is queued")
        thread.start()
        wait_for(lambda: model(service, name)["state"] == "unloading", "it is to be unloaded")
    assert read_together(streams) == [expected_text(5, 1500), expected_text(300, 1500)]
    waiting.check()
    assert waiting.completion is not None
    assert all(stream.is_done for stream in (*streams, waiting.completion))
    thread.join()
    assert answers[0][1]["state"] == "unloaded"
    assert not service.pids("worker.replica", name)


def test_unloading_now_ends_the_streams_with_an_error(service: Service, name: str) -> None:
    load(service, name, context_length=16384)
    streams = [Completion(service, name, 16000, start).read(2) for start in (5, 300)]
    assert unload(service, name, mode="now")[0] == 200
    for stream, start in zip(streams, (5, 300), strict=True):
        stream.read()
        assert stream.error["code"] == "model_unloaded"
        assert not stream.is_done
        assert expected_text(start, 16000).startswith(stream.text)


def test_unloading_has_a_deadline(service: Service, name: str) -> None:
    load(service, name, context_length=30000)
    stream = Completion(service, name, 29900).read(2)
    assert unload(service, name, timeout_s=0.2)[0] == 200
    assert stream.read().error["code"] == "model_unloaded"


def test_unloading_what_is_not_there_is_404(service: Service) -> None:
    assert unload(service, "nobody")[0] == 404


def test_loads_and_unloads_leave_no_growth(service: Service, name: str) -> None:
    agent = psutil.Process(service.pids("worker.agent")[0])

    def measure() -> tuple[int, int, int]:
        wait_for(lambda: not service.pids("worker.replica", name), "the replica is gone")
        return len(service.pids()), agent.memory_info().rss, agent.num_fds()

    def cycle() -> None:
        assert load(service, name)[0] == 200
        assert Completion(service, name, 5).read().text == expected_text(5, 5)
        assert unload(service, name)[0] == 200

    cycle()
    processes, memory, descriptors = measure()
    for _ in range(4):
        cycle()
    processes_after, memory_after, descriptors_after = measure()
    assert processes_after == processes
    assert memory_after < memory * 1.03
    assert descriptors_after <= descriptors + 1


def test_memory_is_free_after_unloading(service: Service, name: str) -> None:
    """RSS of all of the service's processes is back within 5 % of what it was."""

    def resident() -> int:
        pids = service.pids()
        return sum(psutil.Process(pid).memory_info().rss for pid in pids)

    before = resident()
    load(service, name, context_length=32768, slots=16)
    view = model(service, name)
    (replica,) = view["replicas"]
    assert resident() > before + 100 * 2**20
    assert replica["memory_bytes"] <= replica["memory_estimated_bytes"]
    unload(service, name)
    wait_for(lambda: resident() < before * 1.05, "the memory is back")


def test_several_replicas_share_the_queue(service: Service, name: str) -> None:
    assert load(service, name, slots=1, replicas=2)[0] == 200
    view = model(service, name)
    assert len(view["replicas"]) == 2
    streams = [Completion(service, name, 400, start) for start in range(8)]
    for start, stream in enumerate(streams):
        assert stream.read().text == expected_text(start, 400)
    logs = [service.log(f"replica-{name}"), service.log(f"replica-{name}-2")]
    assert all('"request done"' in log for log in logs), "both have worked"
    assert unload(service, name)[0] == 200


def test_nodes_are_listed(service: Service) -> None:
    _, answer = admin(service, "/nodes")
    (node,) = answer["data"]
    assert node["memory_free_bytes"] < node["memory_total_bytes"]
    assert "counter" in node["models"]
    assert node["devices"][0]["id"] == "cpu"


def test_models_are_listed_with_their_state(service: Service) -> None:
    view = wait_for_state(service, "counter", "ready")
    assert view["is_configured"]
    assert view["slots"] == 64
    (replica,) = view["replicas"]
    assert replica["memory_bytes"] > 0
    assert replica["memory_estimated_bytes"] > 0
    assert replica["versions"]["llmis"]


def test_a_file_that_llama_cpp_refuses_is_refused_with_its_reason(service: Service) -> None:
    """The header is sound, the model is not: a tensor has the wrong shape for it."""
    models = TEST_FILES / "models"
    content = (models / "counter.gguf").read_bytes()
    key = b"llama.attention.head_count_kv"
    at = content.index(key) + len(key) + 4
    wrong = content[:at] + (3).to_bytes(4, "little") + content[at + 4 :]
    (models / "wrong.gguf").write_bytes(wrong)
    status, answer = load(service, "wrong", path="wrong.gguf")
    (models / "wrong.gguf").unlink()
    assert (status, answer["error"]["code"]) == (422, "invalid_model"), answer
    assert "wrong" in answer["error"]["message"]
    assert not service.pids("worker.replica", "wrong@")


def test_an_unload_breaks_a_load_off_and_leaves_nothing(service: Service, name: str) -> None:
    body = {"name": name, "path": "counter.gguf", "context_length": 512, "slots": 2}
    events = progress(service, "/models/load", body)
    next(events)
    assert unload(service, name, mode="now")[0] in (200, 404)
    last = list(events)[-1]
    if last["state"] == "failed":
        assert last["error"]["code"] == "conflict", last
        assert model(service, name) is None
        assert not service.pids("worker.replica", name)


def test_a_load_that_is_under_way_has_an_id_is_listed_and_is_joined_only_as_it_is(
    service: Service, name: str
) -> None:
    body = {"name": name, "path": "counter.gguf", "context_length": 512, "slots": 2, "pin": True}
    status, first = admin(service, "/models/load", body)
    assert (status, first["object"]) == (202, "model.load")
    view = model(service, name)
    assert (view["path"], view["pin"]) == ("counter.gguf", True)
    assert admin(service, "/models/load", body)[1]["id"] == first["id"]
    assert admin(service, "/models/load", {**body, "slots": 8})[0] == 409
    assert admin(service, "/operations/load-none")[0] == 404
    path = f"/operations/{first['id']}"
    wait_for(lambda: admin(service, path)[1]["state"] == "ready", "it is ready")


@pytest.mark.parametrize("path", ["loop-a.gguf", "loop-a.gguf/x", "x" * 300])
def test_a_path_that_cannot_be_followed_is_refused_at_once(service: Service, path: str) -> None:
    models = TEST_FILES / "models"
    for link, target in (("loop-a.gguf", "loop-b.gguf"), ("loop-b.gguf", "loop-a.gguf")):
        (models / link).unlink(missing_ok=True)
        (models / link).symlink_to(target)
    status, answer = load(service, "looped", path=path)
    assert (status, answer["error"]["param"]) == (422, "path")
    for link in ("loop-a.gguf", "loop-b.gguf"):
        (models / link).unlink()


def test_a_chat_template_comes_with_the_load(service: Service, name: str) -> None:
    template = "{{ messages[-1].content }} 7"
    assert load(service, name, chat_template=template, strip_leading_space=True)[0] == 200
    answer = service.openai().chat.completions.create(
        model=name, messages=[{"role": "user", "content": "5"}], max_tokens=2, temperature=0
    )
    assert answer.choices[0].message.content == "8 9"
