"""The denylist of a running service: prompts and answers, every way in and out."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simple_websocket import Client

from shared.denylist.file import DenylistFile
from shared.queue import lease
from tests.conftest import TEST_FILES, Service, running_service, wait_for
from tests.support.admin_client import Completion, load, read_together
from tests.support.counter_model import expected_text, number_token
from tests.support.embedding_model import write_mean
from tests.support.paused_replica import stopped
from tests.support.plain_client import Answer as PlainAnswer
from tests.support.plain_client import complete
from tests.support.sse_reader import Answer

_RULES = """
[[rules]]
name = "cut"
action = "truncate"
literals = [" 123"]

[[rules]]
name = "cover"
action = "mask"
literals = [" 42 43", " 77"]

[[rules]]
name = "cover-regex"
action = "mask"
regex = ' 6(1|2)\\b'
max_chars = 8

[[rules]]
name = "note"
action = "tag"
literals = ["66", "555 555"]

[[rules]]
name = "never"
action = "refuse"
literals = ["Verboten", " 901"]

[[rules]]
name = "of-small"
action = "truncate"
models = ["counter-small"]
literals = [" 9"]
"""


def _write(service_dir: Path, text: str) -> None:
    path = service_dir / "denylist.toml"
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("filter")
    _write(folder, _RULES)
    with running_service(folder, extra='denylist = "denylist.toml"') as running:
        yield running


def _shown(start: int, num_tokens: int) -> tuple[str, bool]:
    """What may be seen of the counter's text, and whether it is cut."""
    text = expected_text(start, num_tokens)
    before, cut, _ = text.partition(" 123")
    for word in (" 42 43", " 77", " 61", " 62"):
        before = before.replace(word + " ", "*** ")
        before = before.removesuffix(word) + ("***" if before.endswith(word) else "")
    return before, bool(cut)


def _body(start: int | str, num_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"model": "counter", "prompt": str(start), "max_tokens": num_tokens,
            "temperature": 0, **fields}  # fmt: skip


def _counted(service: Service, **labels: str) -> float:
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    text = urllib.request.urlopen(f"{service.url}/metrics", timeout=60).read().decode()
    wanted = f"llmis_filter_matches_total{{{inside}}} "
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted))


@pytest.mark.parametrize("start", [5, 40, 41, 42, 60, 75, 99, 120, 122, 200])
def test_streamed_and_whole_answers_are_filtered_alike(filtered: Service, start: int) -> None:
    expected, is_cut = _shown(start, 60)
    reason = "content_filter" if is_cut else "length"
    whole = complete(filtered, model="counter", prompt=str(start), max_tokens=60).body
    assert whole["choices"][0]["text"] == expected
    assert whole["choices"][0]["finish_reason"] == reason
    stream = Answer(filtered, "completions", _body(start, 60, stream=True)).read()
    assert stream.text == expected
    chunks = [json.loads(event.data) for event in stream.events[:-1]]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == reason
    assert stream.events[-1].data == "[DONE]"


def test_a_cut_frees_the_slot_at_once(filtered: Service) -> None:
    whole = complete(filtered, model="counter", prompt="100", max_tokens=1500).body
    assert whole["usage"]["completion_tokens"] < 60


def test_chat_answers_are_filtered_too(filtered: Service) -> None:
    body = {"model": "counter", "messages": [{"role": "user", "content": "40"}],
            "max_tokens": 90, "temperature": 0}  # fmt: skip
    answer = Answer(filtered, "chat/completions", body).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] == _shown(40, 90)[0].strip()
    assert choice["finish_reason"] == "content_filter"


def test_all_choices_are_filtered(filtered: Service) -> None:
    whole = complete(filtered, model="counter", prompt="40", max_tokens=90, n=3, best_of=4).body
    assert [c["text"] for c in whole["choices"]] == [_shown(40, 90)[0]] * 3
    assert {c["finish_reason"] for c in whole["choices"]} == {"content_filter"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities_name_nothing_that_is_not_shown(
    filtered: Service, is_stream: bool
) -> None:
    body = _body(70, 60, logprobs=3, stream=is_stream)
    answer = Answer(filtered, "completions", body)
    if is_stream:
        chunks = [json.loads(event.data) for event in answer.read().events[:-1]]
        found = [c["choices"][0]["logprobs"] for c in chunks if c["choices"]]
        text = answer.text
    else:
        whole = answer.json()
        found, text = [whole["choices"][0]["logprobs"]], whole["choices"][0]["text"]
    tokens = [token for part in found if part for token in part["tokens"]]
    tops = [top for part in found if part for top in part["top_logprobs"]]
    assert text == _shown(70, 60)[0]
    assert "".join(tokens) == text
    assert " 77" not in {name for top in tops for name in top}
    assert " 123" not in {name for top in tops for name in top}


def test_rules_may_be_about_one_model(filtered: Service) -> None:
    small = complete(filtered, model="counter-small", prompt="5", max_tokens=20).body["choices"][0]
    assert (small["text"], small["finish_reason"]) == (" 6 7 8", "content_filter")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", _body("das ist verBOTEN", 3), "prompt"),
        ("completions", _body("das ist verBOTEN", 3, stream=True), "prompt"),
        ("chat/completions", {"model": "counter", "messages": [
            {"role": "system", "content": "5"}, {"role": "user", "content": "VERBOTEN"}]},
         "messages"),
        ("chat/completions", {"model": "counter", "messages": [
            {"role": "user", "content": [{"type": "text", "text": "verboten"}]}]}, "messages"),
        # Token ids: their text is known to the replica alone.
        ("completions", {"model": "counter", "prompt": [number_token(900), number_token(901)],
                         "max_tokens": 3}, "prompt"),
    ],
)  # fmt: skip
def test_a_prompt_is_refused(filtered: Service, path: str, body: Any, param: str) -> None:
    before = _counted(filtered, action="refuse", model="counter", where="prompt")
    answer = Answer(filtered, path, body)
    error = answer.json()["error"]
    assert answer.status == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", "content_filter")
    assert error["param"] == param
    assert "never" in error["message"]
    assert "erboten" not in error["message"].lower()
    after = _counted(filtered, action="refuse", model="counter", where="prompt")
    assert after == before + 1


def test_a_tag_is_a_header_a_log_field_and_a_count(filtered: Service) -> None:
    before = _counted(filtered, action="tag", model="counter", where="prompt")
    answer: PlainAnswer = complete(
        filtered, "tagged-1", model="counter", prompt="555 555 5", max_tokens=2
    )
    assert answer.status == 200
    assert answer.headers["x-llmis-filter"] == "note"
    assert answer.body["choices"][0]["text"] == " 6 7"
    assert _counted(filtered, action="tag", model="counter", where="prompt") == before + 1
    assert "x-llmis-filter" not in complete(filtered, model="counter").headers
    assert _line(filtered, "tagged-1")["filter"] == ["note"]


def _line(service: Service, request_id: str) -> dict[str, Any]:
    def found() -> Any:
        lines = [json.loads(x) for x in service.log("web").splitlines() if x.startswith("{")]
        return next(
            (x for x in lines if x["message"] == "request" and x["request_id"] == request_id), None
        )

    line: dict[str, Any] = wait_for(found, f"the line of {request_id}")
    return line


def test_matches_in_answers_are_counted_and_logged(filtered: Service) -> None:
    actions = {"mask": 4, "truncate": 1, "tag": 1}
    before = {a: _counted(filtered, action=a, model="counter", where="output") for a in actions}
    complete(filtered, "counted-1", model="counter", prompt="40", max_tokens=200)
    for action, number in actions.items():
        after = _counted(filtered, action=action, model="counter", where="output")
        assert after == before[action] + number, action
    line = _line(filtered, "counted-1")
    assert set(line["filter"]) == {"cut", "cover", "cover-regex", "note"}
    assert line["finish_reason"] == "content_filter"


def test_a_websocket_is_filtered(filtered: Service) -> None:
    ws = Client.connect(f"ws://127.0.0.1:{filtered.port}/v1/ws")
    for name, prompt in (("a", 40), ("b", "verboten 5")):
        ws.send(json.dumps({"type": "request", "id": name, "endpoint": "completions",
                            "body": _body(prompt, 90)}))  # fmt: skip
    text, reason, error, is_done = "", None, None, False
    while not (is_done and error):
        frame = json.loads(ws.receive(timeout=30) or "")
        if frame["type"] == "chunk":
            text += frame["data"]["choices"][0]["text"]
            reason = frame["data"]["choices"][0]["finish_reason"] or reason
        elif frame["type"] == "error":
            error = frame["error"]
        is_done = is_done or frame["type"] == "done"
    ws.close()
    assert (text, reason) == (_shown(40, 90)[0], "content_filter")
    assert error["code"] == "content_filter"


def test_who_comes_back_gets_the_same_text(filtered: Service) -> None:
    stream = Answer(
        filtered, "completions", _body(40, 90, stream=True), **{"x-request-id": "back-1"}
    ).read()
    expected = _shown(40, 90)[0]
    for number, event in enumerate(stream.events):
        rest = Answer(filtered, "requests/back-1/events", last_id=event.id).read()
        assert "".join(e.text for e in stream.events[: number + 1]) + rest.text == expected
    state = Answer(filtered, "requests/back-1").json()
    assert state["answer"]["choices"][0]["text"] == expected


def test_background_requests_are_filtered(filtered: Service) -> None:
    whole = complete(filtered, model="counter", prompt="40", max_tokens=90, priority="background")
    assert whole.body["choices"][0]["text"] == _shown(40, 90)[0]


def test_what_is_to_be_embedded_is_a_prompt(filtered: Service) -> None:
    write_mean(TEST_FILES / "models" / "mean.gguf")
    assert load(filtered, "mean", path="mean.gguf")[0] == 200
    answer = Answer(filtered, "embeddings", {"model": "mean", "input": ["5", "VERboten"]})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "content_filter", "input")
    assert Answer(filtered, "embeddings", {"model": "mean", "input": "5"}).status == 200


def test_an_echoed_prompt_is_the_clients_own(filtered: Service) -> None:
    whole = complete(filtered, model="counter", prompt="77 122", max_tokens=5, echo=True).body
    choice = whole["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("77 122", "content_filter")


_LONG = """
denylist = "denylist.toml"

[[models]]
name = "long"
path = "counter.gguf"
context_length = 16384
slots = 8
strip_leading_space = true
"""


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose rules are other ones in each test."""
    folder = tmp_path_factory.mktemp("editable")
    _write(folder, "")
    with running_service(folder, extra=_LONG) as running:
        yield running


def _rule(service: Service, text: str) -> None:
    """Write rules and wait until they hold in the web process and in both replicas."""
    service.begin_logs()
    _write(service.data_dir, text)
    for name in ("web", "replica-counter", "replica-long"):
        wait_for(lambda n=name: "denylist read again" in service.log(n), f"{name} has them", 60)  # type: ignore[misc]


def test_another_replica_goes_on_where_the_filter_stood(editable: Service) -> None:
    """Each of several at another place: nothing is lost, doubled or let through at the seam."""
    mask = '[[rules]]\nname = "{}"\naction = "mask"\n{}\n'
    rules = mask.format("words", 'literals = [" 900 901 902 903 904 905 906 907 908 909"]')
    _rule(editable, rules + mask.format("number", "regex = '[12]50\\b'\nmax_chars = 40"))
    starts = [5, 897, 148, 904]
    (pid,) = editable.pids("worker.replica", "long@")
    streams = [Completion(editable, "long", 2500, start).read(3) for start in starts]
    os.kill(pid, signal.SIGKILL)
    texts = read_together(streams)
    assert "job goes on after" in editable.log("replica-long")
    for stream in streams:
        claim = lease.read(editable.redis, stream.response.headers["x-request-id"])
        assert claim is not None
        assert claim.attempt >= 1
    word = "".join(f" {n}" for n in range(900, 910))
    for start, text in zip(starts, texts, strict=True):
        expected = expected_text(start, 2500).replace(f"{word} ", "*** ")
        assert text == expected.replace("150", "***").replace("250", "***"), start


def test_rules_change_without_a_restart_and_bad_ones_do_not(editable: Service) -> None:
    def text() -> str:
        return str(complete(editable, model="counter", max_tokens=9).body["choices"][0]["text"])

    _rule(editable, "# none\n")
    assert text() == expected_text(5, 9)
    folder = editable.data_dir
    _write(folder, '[[rules]]\nname = "a"\naction = "truncate"\nliterals = [" 9"]\n')
    wait_for(lambda: text() == " 6 7 8", "the new rule holds", 60)
    _write(folder, '[[rules]]\nname = "broken"\naction = "mask"\nregex = "(?=a)"\n')
    for name in ("web", "replica-counter"):
        wait_for(lambda n=name: "stays as it was" in editable.log(n), "it is told", 60)  # type: ignore[misc]
    assert text() == " 6 7 8"
    _rule(editable, '[[rules]]\nname = "a"\naction = "refuse"\nliterals = ["5"]\n')
    assert complete(editable, model="counter").status == 400, "prompts, too"


def test_a_bad_file_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is looked at."""
    _write(tmp_path, "")
    rules = DenylistFile(tmp_path / "denylist.toml", tmp_path)
    _write(tmp_path, '[[rules]]\nname = "broken"\naction = "mask"\nregex = "(?=a)"\n')
    for _ in range(3):
        rules.refresh()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "stays as it was" in said
    assert "rule 'broken': regex: invalid perl operator" in said


def test_a_rule_that_changes_in_mid_answer_holds_for_new_requests(editable: Service) -> None:
    """And a replica that dies then lets the next one go on by the new rules, without a seam."""
    _rule(editable, '[[rules]]\nname = "a"\naction = "mask"\nregex = "x"\nmax_chars = 60\n')
    body = {**_body(5, 12_000, stream=True), "model": "long"}
    (pid,) = editable.pids("worker.replica", "long@")
    stream = Answer(editable, "completions", body, **{"x-request-id": "new-rules"}).read(3)
    with stopped(pid):
        rule = '[[rules]]\nname = "a"\naction = "mask"\nliterals = [" 990"]\n'
        _write(editable.data_dir, rule)
        os.kill(pid, signal.SIGKILL)
    text = stream.read().text
    assert _line(editable, "new-rules")["attempts"] == 2
    whole = expected_text(5, 12_000)
    begin, end = text.split("***")[0], text.split("***")[-1]
    assert begin.endswith(" 989")
    assert text.count("***") >= 10
    assert text.replace("***", " 990") == whole, (begin, end)


def test_a_bad_file_stops_the_start(tmp_path: Path) -> None:
    _write(tmp_path, '[[rules]]\nname = "odd"\naction = "mask"\non = "prompt"\nliterals = ["a"]\n')
    with (
        pytest.raises(pytest.fail.Exception) as caught,
        running_service(tmp_path, extra='denylist = "denylist.toml"'),
    ):
        pass
    assert "denylist.toml: rule 'odd': mask works on output only" in str(caught.value)
