"""The board, the alerts and the documents fit each other. `tests/integration/test_monitoring.py`
shows that Prometheus answers what they ask.
"""

import inspect
import json
import re
from collections.abc import Iterator
from enum import Enum
from itertools import combinations
from typing import Any, get_args, get_type_hints

import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from shared import errors
from tests.conftest import ROOT
from tests.support import monitoring


def test_the_board_is_what_grafana_knows() -> None:
    """Read into Grafana's own model of a board and written again, it has lost nothing."""
    plugins.register_default_plugins()
    shown = Dashboard.from_json(monitoring.board())
    written = json.loads(JSONEncoder().encode(shown))
    assert list(_lost(monitoring.board(), written, "")) == []
    assert list(_strange_words(shown, "")) == []


def _lost(given: Any, written: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(written, dict):
        for key, value in given.items():
            yield from _lost(value, written.get(key, "nothing"), f"{path}/{key}")
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for index, (ours, theirs) in enumerate(zip(given, written, strict=True)):
            yield from _lost(ours, theirs, f"{path}/{index}")
    elif given != written:
        yield f"{path}: {given!r} became {written!r}"


def _strange_words(found: Any, path: str) -> Iterator[str]:
    """Values that are none of the words that Grafana's model lists for them."""
    if isinstance(found, list):
        for index, item in enumerate(found):
            yield from _strange_words(item, f"{path}/{index}")
    elif type(found).__module__.startswith("grafana_foundation_sdk.models"):
        hints = get_type_hints(type(found).__init__)
        for name, value in vars(found).items():
            words = [kind for kind in (hints.get(name), *get_args(hints.get(name)))
                     if inspect.isclass(kind) and issubclass(kind, Enum)]  # fmt: skip
            if words and value is not None and value not in list(words[0]):
                yield f"{path}/{name}: {value!r}"
            yield from _strange_words(value, f"{path}/{name}")


def test_panels_have_a_place_of_their_own() -> None:
    panels = monitoring.board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["title"], panel["gridPos"]) for panel in panels]
    for title, place in places:
        assert place["x"] + place["w"] <= 24, title
    for (one, a), (other, b) in combinations(places, 2):
        is_beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        is_below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert is_beside or is_below, f"{one} lies on {other}"


def test_panels_use_the_variables_of_the_board() -> None:
    board = monitoring.board()
    known = {variable["name"] for variable in board["templating"]["list"]}
    assert known == {"datasource", "model", "node"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board)))
    assert used == known | {"__rate_interval", "__all"}
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"], panel["title"]


def test_grafana_finds_the_board_and_prometheus() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards/llmis.yml").read_text())["providers"]
    assert provider["type"] == "file"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    document = (ROOT / "docs" / "monitoring.md").read_text()
    assert provider["options"]["path"] in document
    assert source["url"].removeprefix("$") in document


def test_every_metric_asked_for_is_in_the_list_of_metrics() -> None:
    listed = set(re.findall(r"^\| `(llmis_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M))
    known = listed | set(monitoring.recorded())
    for expression in [*monitoring.of_the_board(), *monitoring.of_the_rules()]:
        for name in expression.names():
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert {name, family} & known, f"{expression.where} asks for {name}"


def test_every_alert_says_what_to_do() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    chapter = operations.split("\n## Alerts\n")[1].split("\n## ")[0]
    described = re.findall(r"^### (\w+)$", chapter, re.M)
    assert sorted(described) == sorted(alert["alert"] for alert in monitoring.alerts())
    for alert in monitoring.alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        notes = alert["annotations"]
        assert notes["summary"] and notes["description"], alert["alert"]
        assert notes["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_the_error_ratio_counts_what_is_the_service_s_fault() -> None:
    """The reasons that the rules name are the codes of 5xx, but for two that no request is lost by
    or that have an alert of their own.
    """
    codes = {kind.code or kind.type for kind in _kinds(errors.LlmisError) if kind.status >= 500}
    rules = [r for r in monitoring.rules() if r.get("record") == "llmis:request_errors:rate5m"]
    assert len(rules) == 2
    for rule in rules:
        (named,) = re.findall(r'reason=~"([^"]+)"', rule["expr"])
        assert set(named.split("|")) == codes - {"queue_timeout", "going_away"}


def _kinds(kind: type[errors.LlmisError]) -> Iterator[type[errors.LlmisError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def test_every_alert_has_a_test_that_makes_it_fire_and_one_that_does_not() -> None:
    tests = yaml.safe_load((ROOT / "deploy/prometheus/rules.test.yml").read_text())["tests"]
    checks = [check for test in tests for check in test.get("alert_rule_test", [])]
    for alert in monitoring.alerts():
        own = [check for check in checks if check["alertname"] == alert["alert"]]
        assert {bool(check.get("exp_alerts")) for check in own} == {True, False}, alert["alert"]
