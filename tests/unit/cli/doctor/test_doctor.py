"""`llmis doctor`: each thing that can be wrong, and that nothing is when all is well."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from cli.doctor import command, installation, machine
from cli.doctor.finding import Severity
from shared.settings.fields import Settings
from shared.settings.load import load as load_settings
from shared.version import VERSION
from tests.conftest import free_port
from tests.support.cli_answers import HOSTILE, run
from tests.support.fake_service import FakeService, Reply

_MODEL = '[[models]]\nname = "m"\npath = "m.gguf"\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with settings of its own and a model's weights."""
    for name in [name for name in os.environ if name.startswith("LLMIS_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    _write(tmp_path)
    models = tmp_path / "var" / "models"
    models.mkdir(parents=True)
    (models / "m.gguf").write_bytes(b"GGUF and more")
    return tmp_path


def _write(folder: Path, more: str = "", port: int | None = None) -> None:
    text = f"port = {port or free_port()}\nflower_port = 0\n{more}\n{_MODEL}"
    (folder / "llmis.toml").write_text(text)


def _settings(folder: Path) -> Settings:
    return load_settings({"LLMIS_CONFIG": str(folder / "llmis.toml")})


def _problems(*arguments: str) -> list[str]:
    """The lines that report a problem."""
    result = run("doctor", *arguments)
    found = [line for line in result.stdout.splitlines() if line.startswith("problem")]
    assert result.exit_code == (1 if found else 0), result.output
    assert all("To fix it: " in line for line in found)
    return found


def test_a_good_installation_has_no_problem(home: Path) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok", "warning"}
    assert lines[-1].startswith("warning  service: none answers")
    for expected in ("Python", "packages", "settings", "m.gguf", "cores", "memory", "Valkey"):
        assert expected in result.stdout


def test_json_has_the_same_findings(home: Path) -> None:
    findings = json.loads(run("doctor", "--json").stdout)
    assert {finding["outcome"] for finding in findings} <= {"ok", "warning"}
    assert {"outcome", "subject", "text", "mend"} == set(findings[0])


def test_python_that_is_too_old() -> None:
    assert installation.check_python((3, 10, 4)).outcome is Severity.PROBLEM
    assert installation.check_python((3, 13, 0)).outcome is Severity.OK


def test_packages_that_are_missing_or_of_another_version(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("# a comment\n-c x\nclick==0.1\ncelery[redis]==5.7.0\nno-such-package==1.0\n")
    finding = installation.check_requirements(pins)
    assert finding.outcome is Severity.PROBLEM
    assert "click is " in finding.text
    assert "not 0.1" in finding.text
    assert "no-such-package is not installed" in finding.text
    assert "celery" not in finding.text
    assert installation.check_requirements(tmp_path / "none").outcome is Severity.PROBLEM


def test_settings_that_cannot_be_read(home: Path) -> None:
    (home / "llmis.toml").write_text("nonsense = 1")
    assert "nonsense: no such setting" in _problems()[0]


def test_a_folder_that_cannot_be_written(home: Path) -> None:
    (home / "file").write_text("")
    _write(home, 'data_dir = "file/var"\nmodels_dir = "var/models"')
    (found,) = _problems()
    assert found.startswith("problem  data folder")
    assert "LLMIS_DATA_DIR" in found


def test_folders_that_are_not_there_yet_are_not_made(home: Path) -> None:
    _write(home, 'data_dir = "later"\nmodels_dir = "var/models"')
    assert "later, created at the first start" in run("doctor").stdout
    assert not (home / "later").exists()


@pytest.mark.parametrize(
    ("free_bytes", "outcome"),
    [(1 << 20, Severity.PROBLEM), (1 << 30, Severity.WARNING), (1 << 40, Severity.OK)],
)
def test_a_full_disk(
    home: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, outcome: Severity
) -> None:
    usage = shutil.disk_usage(home)._replace(free=free_bytes)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _path: usage)
    assert [f.outcome for f in installation.check_folders(_settings(home))][-1] is outcome


def test_weights_that_are_missing_or_broken(home: Path) -> None:
    weights = home / "var" / "models" / "m.gguf"
    weights.write_bytes(b"<html>")
    assert "not a GGUF file" in _problems()[0]
    weights.unlink()
    assert f"no weights at {weights}" in _problems()[0]


@pytest.mark.parametrize(("package", "is_there"), [("json", True), ("no.such", False)])
def test_weights_that_a_package_carries(home: Path, package: str, is_there: bool) -> None:
    (home / "var" / "models" / "m.gguf").unlink()
    with (home / "llmis.toml").open("a") as file:
        file.write(f'package = "{package}"\n')
    if is_there:
        assert _problems() == []
    else:
        assert "requirements-demo.txt" in _problems()[0]


def test_a_port_that_something_silent_has_taken(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_ANSWER_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _write(home, port=port)
        (found,) = _problems()
    assert found.startswith(f"problem  port: 127.0.0.1:{port} cannot be used")
    assert "LLMIS_PORT" in found


def test_a_port_that_another_server_has_taken(home: Path, fake: FakeService) -> None:
    fake.replies["GET /version"] = Reply({"version": None})
    _write(home, port=int(fake.url.rpartition(":")[2]))
    port, service = _problems()
    assert port.startswith("problem  port")
    assert service.startswith("problem  service")


def test_a_redis_that_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://:secret@127.0.0.1:{free_port()}/0")
    (found,) = _problems()
    assert found.startswith("problem  Redis: REDIS_URL does not answer")
    assert "secret" not in found
    monkeypatch.setenv("REDIS_URL", "no url")
    assert len(_problems()) == 1


def test_an_embedded_server_that_does_not_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.service import embedded_redis

    monkeypatch.setattr(embedded_redis, "binary_path", lambda: "/bin/false")
    assert "the embedded server does not run" in _problems()[0]


def test_a_service_that_runs_is_no_port_in_use(home: Path, fake: FakeService) -> None:
    _write(home, port=int(fake.url.rpartition(":")[2]))
    lines = run("doctor").stdout
    assert "used by llmis" in lines
    assert f"{VERSION} runs, and is installed" in lines
    assert f"ready at {fake.url}" in lines
    assert _problems() == []


def test_a_service_that_is_not_ready_or_of_another_version(home: Path, fake: FakeService) -> None:
    fake.replies["GET /version"] = Reply({"version": "9.9.9"})
    reasons = ["Redis does not answer", HOSTILE]
    fake.replies["GET /readyz"] = Reply({"status": "not ready", "reasons": reasons}, 503)
    version, readiness = _problems("--url", fake.url)
    assert f"9.9.9 runs, {VERSION} is installed" in version
    assert "Redis does not answer; [red]x[/red] ␛]0;owned␇" in readiness


def test_memory_and_cores_within_a_container(home: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    settings = _settings(home)
    assert machine.memory_bytes(tmp_path) == (1000, 10)
    assert machine.available_cores(tmp_path) <= 1.5
    assert machine.check_cores(settings, tmp_path).outcome is Severity.WARNING
    tight = machine.check_memory(settings, is_running=False, cgroup=tmp_path)
    assert tight.outcome is Severity.WARNING
    running = machine.check_memory(settings, is_running=True, cgroup=tmp_path)
    assert running.outcome is Severity.OK
    (tmp_path / "memory.max").write_text("10\n")
    full = machine.check_memory(settings, is_running=True, cgroup=tmp_path)
    assert full.outcome is Severity.PROBLEM


def test_more_threads_than_cores(home: Path, tmp_path: Path) -> None:
    with (home / "llmis.toml").open("a") as file:
        file.write("threads = 1000\n")
    finding = machine.check_cores(_settings(home), tmp_path)
    assert finding.outcome is Severity.WARNING
    assert "m" in finding.text
