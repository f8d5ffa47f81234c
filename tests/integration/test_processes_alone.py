"""Processes that are started one by one need nothing that `llmis up` would do for them."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import ROOT, Service, free_port, models_folder, wait_for
from tests.support import alone, image
from tests.support.admin_client import Completion, readiness
from tests.support.counter_model import expected_text
from tests.support.metrics_page import Page

_WEB = [sys.executable, "-m", "cli", "web"]


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _is_ready(service: Service) -> bool:
    try:
        return readiness(service)[0] == 200
    except OSError:
        return False


def _check(environment: alone.Environment, *process: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "cli", "check", *process]
    result = subprocess.run(command, env=environment.variables, capture_output=True, text=True)
    return result.returncode, result.stderr


def test_the_procfile_runs_the_service_and_stops_it(tmp_path: Path) -> None:
    honcho = [sys.executable, "-m", "honcho", "start", "-f", "Procfile", "-e", "/dev/null"]
    with alone.environment(tmp_path) as environment, environment.started(honcho) as service:
        wait_for(lambda: _is_ready(service), "the model is ready", 90)
        assert Completion(service, "counter", 20).read().text == expected_text(5, 20)
        wait_for(lambda: _status(service.flower_port, "/") == 200, "Flower answers", 60)
        assert _status(service.port, "/metrics") == 200
        assert service.pids("worker.replica")
        for process in ("web", "agent", "flower"):
            assert _check(environment, process) == (0, "")
        assert _check(environment) == (0, "")
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(60)
        assert not service.pids(), environment.output()
        for process in ("web", "agent", "flower"):
            status, said = _check(environment, process)
            assert status == 1
            assert said.startswith("llmis: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make file systems read-only")
def test_the_files_of_the_image_run_and_write_to_one_folder_alone(tmp_path: Path) -> None:
    """And to the temporary folder."""
    code = tmp_path / "code"
    image.lay_out(code)
    honcho = [sys.executable, "-m", "honcho", "-f", str(ROOT / "Procfile"), "-d", str(code)]
    honcho += ["-e", "/dev/null", "start"]
    with alone.environment(tmp_path) as environment:
        models = environment.data_dir / "models"
        models.mkdir()
        shutil.copy(models_folder() / "counter.gguf", models)
        temporary = environment.data_dir / "tmp"
        temporary.mkdir()
        more = {"TMPDIR": str(temporary), "HOME": str(temporary), "LLMIS_MODELS_DIR": str(models)}
        command = [str(ROOT / "tests" / "read-only"), str(environment.data_dir), *honcho]
        with environment.started(command, code, **more) as service:
            wait_for(lambda: _is_ready(service), "the model is ready", 90)
            assert Completion(service, "counter", 20).read().text == expected_text(5, 20)
            wait_for(lambda: _status(service.flower_port, "/") == 200, "Flower answers", 60)
            web = service.pids("app.wsgi")[0]
            assert Path(f"/proc/{web}/cwd").readlink() == code
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(60)
        assert "Read-only file system" not in environment.output()
        assert "Traceback" not in environment.output()


def test_web_processes_tell_systemd_that_they_serve(tmp_path: Path) -> None:
    with (
        alone.environment(tmp_path) as environment,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
    ):
        notices.bind(str(tmp_path / "notify"))
        notices.settimeout(60)
        with environment.started(_WEB, NOTIFY_SOCKET=str(tmp_path / "notify")):
            assert b"READY=1" in notices.recv(4096)


def test_each_web_tier_has_counters_that_begin_at_zero(tmp_path: Path) -> None:
    with alone.environment(tmp_path) as environment:
        for _ in range(2):  # the second one starts where the first has counted
            with environment.started(_WEB) as first:
                wait_for(lambda: _status(first.port, "/healthz") == 200, "it answers", 60)
                assert _num_counted(first.port) == 0
                assert _status(first.port, "/version") == 200
                wait_for(lambda: _num_counted(first.port) == 1, "it is counted")
                with environment.started(_WEB) as refused:
                    assert refused.process.wait(60) != 0, "the port is taken"
                port = free_port()
                with environment.started(_WEB, LLMIS_PORT=str(port)):
                    wait_for(lambda port=port: _status(port, "/healthz") == 200, "it answers", 60)
                    assert _num_counted(port) == 0
                assert _num_counted(first.port) == 1


def _num_counted(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        page = Page(answer.read().decode())
    return page.value("llmis_http_request_duration_seconds_count", route="/version")
