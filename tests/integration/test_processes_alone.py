"""Processes that are started one by one need nothing that `llmis up` would do for them."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import alone, image
from tests.admin_client import Completion, readiness
from tests.conftest import ROOT, Service, free_port, models_folder, wait_for
from tests.counter_model import expected_text


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
        assert list((service.data_dir / "metrics").glob("1/*.db"))
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


def test_web_processes_begin_with_empty_counters_and_tell_systemd(tmp_path: Path) -> None:
    web = [sys.executable, "-m", "cli", "web"]
    with (
        alone.environment(tmp_path) as environment,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices,
    ):
        notices.bind(str(tmp_path / "notify"))
        notices.settimeout(60)
        metrics = environment.data_dir / "metrics" / "1"
        metrics.mkdir(parents=True)
        (metrics / "counter_1.db").write_bytes(b"of an earlier start")
        with environment.started(web, NOTIFY_SOCKET=str(tmp_path / "notify")) as service:
            assert b"READY=1" in notices.recv(4096)
            wait_for(lambda: _status(service.port, "/healthz") == 200, "it answers", 60)
            assert _status(service.port, "/metrics") == 200
            assert not (metrics / "counter_1.db").exists()


def test_a_second_web_tier_leaves_the_counters_of_the_first(tmp_path: Path) -> None:
    web = [sys.executable, "-m", "cli", "web"]
    with alone.environment(tmp_path) as environment, environment.started(web) as service:
        wait_for(lambda: _status(service.port, "/metrics") == 200, "it answers", 60)
        files = set((service.data_dir / "metrics").glob("1/*.db"))
        assert files
        with environment.started(web) as second:
            assert second.process.wait(60) != 0
        port = free_port()
        with environment.started(web, LLMIS_PORT=str(port)):
            wait_for(lambda: _status(port, "/metrics") == 200, "the second answers", 60)
            assert list((service.data_dir / "metrics").glob("2/*.db"))
        assert files <= set((service.data_dir / "metrics").glob("1/*.db"))
