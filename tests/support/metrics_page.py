"""`/metrics` as the tests read it."""

import re
import urllib.request
from collections import defaultdict
from typing import Any

from tests.conftest import Service, wait_for

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Page:
    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for line in text.splitlines():
            if not line.startswith("#"):
                found = _SAMPLE.match(line)
                assert found is not None, line
                labels = dict(_LABEL.findall(found[2] or ""))
                self.samples[found[1]].append((labels, float(found[3])))

    @classmethod
    def of(cls, service: Service) -> "Page":
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=60) as answer:
            return cls(answer.read().decode())

    def value(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        return sum(value for has, value in self.samples[name] if labels.items() <= has.items())

    def label_values(self, label: str) -> set[str]:
        found = (has for samples in self.samples.values() for has, _ in samples)
        return {has[label] for has in found if label in has}

    @property
    def num_series(self) -> int:
        return sum(len(samples) for samples in self.samples.values())

    def quantile(
        self, name: str, q: float, before: "Page", **labels: str
    ) -> tuple[float, float, float]:
        """Prometheus' histogram_quantile of what has come since `before`; and the bounds of the
        bucket that it is in."""
        at = {float(has["le"]) for has, _ in self.samples[f"{name}_bucket"]}
        lower, below = 0.0, 0.0
        counts = {
            bound: _at(self, name, bound, labels) - _at(before, name, bound, labels) for bound in at
        }
        total = counts[float("inf")]
        for bound in sorted(at):
            if counts[bound] >= q * total:
                part = (q * total - below) / (counts[bound] - below)
                return lower + (bound - lower) * part, lower, bound
            lower, below = bound, counts[bound]
        raise AssertionError("the last bucket has all")


def _at(page: Page, name: str, bound: float, labels: dict[str, str]) -> float:
    return sum(
        value
        for has, value in page.samples[f"{name}_bucket"]
        if float(has["le"]) == bound and labels.items() <= has.items()
    )


def wait_for_more(service: Service, before: Page, by: float, name: str, **labels: str) -> Page:
    """Wait until a counter has gone up by so much, and see that it has not by more."""
    expected = before.value(name, **labels) + by

    def found() -> Any:
        page = Page.of(service)
        return page if page.value(name, **labels) >= expected else None

    page: Page = wait_for(found, f"{name}{labels} goes up by {by:g}")
    assert page.value(name, **labels) == expected
    return page
