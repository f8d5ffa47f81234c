"""A real Prometheus with the configuration of `deploy/prometheus`, and promtool."""

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TEST_FILES, free_port, wait_for

CONFIGURATION = ROOT / "deploy" / "prometheus"


def binary(name: str) -> str:
    """`prometheus` or `promtool`, as `tests/install-prometheus` leaves them."""
    fetched = TEST_FILES / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(fetched) if fetched.exists() else None)
    if found is None:
        pytest.fail(f"{name} is missing: run tests/install-prometheus")
    return found


def promtool(*arguments: str, folder: Path = CONFIGURATION) -> str:
    """What it prints. A status that is not 0 is a failure."""
    done = subprocess.run(
        [binary("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Sample:
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[Sample]:
        """The value now. An expression that Prometheus refuses is a failure."""
        found = self._get("query", query=expression)["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in found]

    def series(self, selector: str) -> list[dict[str, str]]:
        """The labels of each."""
        found: list[dict[str, str]] = self._get("series", **{"match[]": selector})
        return found

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as response:
                return json.loads(response.read())["data"]
        except urllib.error.HTTPError as refusal:
            pytest.fail(f"{parameters}: {json.loads(refusal.read())['error']}")


@contextmanager
def running_prometheus(
    folder: Path, target: str, configuration: Path = CONFIGURATION
) -> Iterator[Prometheus]:
    """One that scrapes `target` (host:port) every second, else as configured."""
    shutil.copytree(configuration, folder / "configuration")
    address = f"127.0.0.1:{free_port()}"
    _replace(folder / "configuration/prometheus.yml", "interval: 15s", "interval: 1s")
    _replace(folder / "configuration/prometheus.yml", "127.0.0.1:9090", address)
    _replace(folder / "configuration/targets/llmis.yml", "127.0.0.1:8000", target)
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={folder}/configuration/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        prometheus = Prometheus(f"http://{address}")
        wait_for(prometheus.is_ready, "Prometheus is ready")
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old}"
    path.write_text(text.replace(old, new))
