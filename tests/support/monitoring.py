"""What `deploy/` asks Prometheus: the expressions of the board and of the rules."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.conftest import ROOT

BOARD = ROOT / "deploy" / "grafana" / "llmis.json"
RULE_FILES = [ROOT / "deploy" / "prometheus" / name for name in ("alerts.yml", "vllm.yml")]

_NAME = re.compile(r"\b(?:llmis|vllm)[:_][a-z0-9_:]+")
_SELECTOR = re.compile(rf"({_NAME.pattern})(?:{{([^}}]*)}})?")
_GROUPING = re.compile(r"\b(?:by|on|without) \(([^)]*)\)")


@dataclass(frozen=True)
class Expression:
    where: str
    text: str
    legend: str = ""

    def __str__(self) -> str:
        return f"{self.where} {self.legend}".strip()

    def shown_labels(self) -> set[str]:
        """Labels that the legend names."""
        return set(re.findall(r"{{(\w+)}}", self.legend))

    def names(self) -> set[str]:
        return set(_NAME.findall(self.text))

    def selectors(self) -> list[tuple[str, list[str]]]:
        """Each metric with the labels that it is asked for."""
        found = _SELECTOR.findall(self.text)
        return [(name, re.findall(r"(\w+)\s*[=!]", matchers)) for name, matchers in found]

    def groupings(self) -> set[str]:
        """Labels of `by`, `on` and `without`."""
        words = [
            label.strip() for text in _GROUPING.findall(self.text) for label in text.split(",")
        ]
        return {word for word in words if word}


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


def of_the_board() -> list[Expression]:
    return [
        Expression(panel["title"], target["expr"], target.get("legendFormat", ""))
        for panel in board()["panels"]
        for target in panel.get("targets", [])
    ]


def rules() -> Iterator[dict[str, Any]]:
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> list[str]:
    return [rule["record"] for rule in rules() if "record" in rule]


def of_the_rules() -> list[Expression]:
    return [Expression(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def substituted(expression: str, interval: str = "30s", **variables: str) -> str:
    """As Grafana sends it: its own variables, and those of the board."""
    values = {"__rate_interval": interval, "__range": interval, **variables}
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], expression)
