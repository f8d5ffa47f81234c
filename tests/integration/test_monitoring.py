"""A real Prometheus reads a real service as `deploy/prometheus` says, and answers all that the
board, the alerts and boards made for vLLM ask it.
"""

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import pytest

from shared import api_keys
from shared.api_keys import Scope
from tests.conftest import Service, running_service, wait_for
from tests.support import monitoring, vllm_board
from tests.support.admin_client import Completion
from tests.support.monitoring import Expression, substituted
from tests.support.prometheus import CONFIGURATION, Prometheus, promtool, running_prometheus
from tests.support.sse_reader import Answer

# "huge" fits nowhere: its requests fail by the service's fault.
_MORE = """
max_open_requests = 8

[[models]]
name = "huge"
path = "counter.gguf"
context_length = 4000000
slots = 64
preload = false
"""
_PATIENCE_S = 60
_NOT_PROVOKED = {"llmis_auth_failures_total", "llmis_filter_matches_total"}
"""What a service without keys and filter never counts: these expressions only have to run."""
_PROVOKED_ALERTS = {"LlmisErrors", "LlmisFailovers", "LlmisModelAway"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("llmis"), extra=_MORE) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen requests of every kind, and more come all the time."""
    folder = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(folder, f"127.0.0.1:{service.port}") as running:
        _provoke(service)
        with _load(service):
            yield running


def _provoke(service: Service) -> None:
    """A failure, refusals, a client that leaves, one that comes back, a fail-over."""
    assert Completion(service, "counter-small", 20, prompt="5 " * 600).read().error
    assert Completion(service, "nobody", 20).read().error["code"] == "model_not_found"
    assert Completion(service, "huge", 20).read().error["code"] == "insufficient_memory"
    Completion(service, "counter", 1900).read(2).close()
    body = {"model": "counter", "prompt": "5", "max_tokens": 1900, "stream": True}

    def is_refused() -> bool:
        asked = [Answer(service, "completions", body, owner="many") for _ in range(9)]
        return asked[-1].status == 429

    wait_for(is_refused, "a key has too many open requests")
    first = Answer(service, "completions", body).read(2)
    first.close()
    Answer(service, f"requests/{first.request_id}/events", last_id=first.last_id).read()
    (pid,) = service.pids("worker.replica", "counter-small@")
    interrupted = Completion(service, "counter-small", 400, n=20).read(2)
    os.kill(pid, signal.SIGKILL)
    assert interrupted.error is None and interrupted.read().error is None


@contextmanager
def _load(service: Service) -> Iterator[None]:
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.2):
            Completion(service, "counter", 100).read().close()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        is_over.set()
        asking.join()


def _answer(
    prometheus: Prometheus, expression: Expression, **variables: str
) -> list[dict[str, str]]:
    """The labels of what comes back; waits for at least one number."""
    text = substituted(expression.text, **variables)

    def found() -> list[dict[str, str]]:
        return [sample.labels for sample in prometheus.query(text) if isfinite(sample.value)]

    return wait_for(found, f"data for {expression.where}: {text}", _PATIENCE_S)


def test_promtool_finds_nothing_wrong() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "../compose/prometheus.yml")
    for path in monitoring.RULE_FILES:
        promtool("check", "rules", path.name)


def test_the_alerts_fire_and_are_silent_as_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules.test.yml")


def test_the_configuration_with_a_key_and_tls_is_valid(tmp_path: Path) -> None:
    folder = _uncommented(tmp_path, "a-key", "authorization", "  credentials_file", "scheme")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", folder=folder)


def test_prometheus_reads_a_service_that_asks_for_keys(tmp_path: Path) -> None:
    for name in ("llmis", "without", "with"):
        (tmp_path / name).mkdir()
    with running_service(tmp_path / "llmis", extra="auth = true") as guarded:
        target = f"127.0.0.1:{guarded.port}"
        key = api_keys.create(guarded.redis, "prometheus", Scope.METRICS)[0]
        configuration = _uncommented(tmp_path, key, "authorization", "  credentials_file")
        with running_prometheus(tmp_path / "without", target) as prometheus:
            wait_for(lambda: prometheus.query('up{job="llmis"} == 0'), "it is refused", _PATIENCE_S)
            assert any("401" in target["lastError"] for target in prometheus.targets())
        with running_prometheus(tmp_path / "with", target, configuration) as prometheus:
            refusals = 'llmis_auth_failures_total{reason="missing"}'
            wait_for(lambda: prometheus.query(refusals), "its refusals are seen", _PATIENCE_S)


def _uncommented(folder: Path, key: str, *words: str) -> Path:
    """The configuration with lines that stand there as comments."""
    configuration = shutil.copytree(CONFIGURATION, folder / "prometheus")
    path = configuration / "prometheus.yml"
    text = path.read_text()
    for word in words:
        assert f"    # {word}:" in text
        text = text.replace(f"    # {word}:", f"    {word}:")
    (folder / "llmis.key").write_text(key)
    path.write_text(text.replace("/etc/prometheus/llmis.key", f"{folder}/llmis.key"))
    return configuration


def test_prometheus_reads_the_service(prometheus: Prometheus) -> None:
    def up() -> bool:
        return {sample.labels["job"] for sample in prometheus.query("up == 1")} == {
            "llmis", "prometheus",
        }  # fmt: skip

    wait_for(up, "both targets are up", _PATIENCE_S)


@pytest.mark.parametrize("expression", monitoring.of_the_board(), ids=str)
def test_every_panel_has_data(prometheus: Prometheus, expression: Expression) -> None:
    variables = {"model": "(counter|counter-small|)", "node": ".*"}
    if expression.names() & _NOT_PROVOKED or "ALERTS" in expression.text:
        prometheus.query(substituted(expression.text, **variables))
        return
    answer = _answer(prometheus, expression, **variables)
    assert expression.shown_labels() <= set().union(*answer)


def test_the_variables_of_the_board_have_values(prometheus: Prometheus) -> None:
    for variable in monitoring.board()["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.findall(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])[0]
            _wait_for_series(prometheus, name)
            assert any(series[label] for series in prometheus.series(name)), name


def test_every_rule_runs(prometheus: Prometheus) -> None:
    def judged() -> bool:
        return all(rule["health"] != "unknown" for rule in prometheus.rules())

    wait_for(judged, "every rule has been evaluated", _PATIENCE_S)
    for rule in prometheus.rules():
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
    assert len(prometheus.rules()) == len(list(monitoring.rules()))


@pytest.mark.parametrize("name", sorted(set(monitoring.recorded())))
def test_every_recorded_name_has_data(prometheus: Prometheus, name: str) -> None:
    _wait_for_series(prometheus, name)


def test_every_rule_asks_for_series_and_labels_that_there_are(prometheus: Prometheus) -> None:
    """Alerts are silent in a healthy service, and so are wrong names."""
    for expression in monitoring.of_the_rules():
        seen: set[str] = set()
        for name, labels in expression.selectors():
            if name in _NOT_PROVOKED:
                continue
            _wait_for_series(prometheus, name)
            has = set().union(*prometheus.series(name))
            assert set(labels) <= has, f"{expression.where}: {name} has {has}"
            seen |= has
        if seen and "label_replace" not in expression.text:
            assert expression.groupings() <= seen, expression.where


def _wait_for_series(prometheus: Prometheus, name: str) -> None:
    wait_for(lambda: prometheus.query(name), f"series of {name}", _PATIENCE_S)


def test_a_healthy_service_alerts_nobody(prometheus: Prometheus) -> None:
    """Not even for a moment, but for what was provoked."""
    wait_for(lambda: prometheus.query("vllm:num_requests_running"), "rules ran", _PATIENCE_S)
    pending = {
        rule["name"] for rule in prometheus.rules() if rule.get("state", "inactive") != "inactive"
    }
    assert pending <= _PROVOKED_ALERTS


@pytest.mark.parametrize("query", [*vllm_board.EXAMPLE, *vllm_board.OVERVIEW])
def test_boards_made_for_vllm_have_data(prometheus: Prometheus, query: str) -> None:
    values = {
        "model_name": "counter",
        "job": "llmis",
        "instance": "127.0.0.1:.*",
        "ttft_slo": "1.0",
    }
    _answer(prometheus, Expression("a panel of vLLM's", query), **values)
