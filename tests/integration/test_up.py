"""`llmis up`: starts, says what is wrong, stops without a trace."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import names
from tests.conftest import ROOT, TEST_FILES, Service, free_port, running_service, wait_for
from tests.support.admin_client import load
from tests.support.embedding_model import mean_file
from tests.support.paused_replica import stopped


def _up(tmp_path: Path, text: str = "models = []", **environ: str) -> tuple[int, str]:
    """Run a start that is expected to fail; return its status and what it said."""
    config = tmp_path / "llmis.toml"
    config.write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMIS_")}
    environment |= {"LLMIS_CONFIG": str(config), "LLMIS_DATA_DIR": str(tmp_path / "var")}
    environment |= {"LLMIS_PORT": str(free_port()), "LLMIS_FLOWER_PORT": "0", **environ}
    result = subprocess.run(
        [sys.executable, "-m", "cli", "up"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stderr.strip()


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = _up(tmp_path, LLMIS_PORT=str(port))
    assert status == 1
    assert f"127.0.0.1:{port}" in said
    assert "LLMIS_PORT" in said
    assert len(said.splitlines()) == 1


def test_a_broken_setting_is_one_clear_line(tmp_path: Path) -> None:
    status, said = _up(tmp_path, "keepalive_s = 'often'")
    assert status == 1
    assert said.startswith("llmis: keepalive_s = 'often'")
    assert len(said.splitlines()) == 1


def test_a_redis_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    status, said = _up(tmp_path, REDIS_URL=url)
    assert status == 1
    assert "REDIS_URL" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "there are no weights"), (b"not a model", "is not a GGUF file")],
)
def test_bad_weights_are_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    models = tmp_path / "var" / "models"
    models.mkdir(parents=True)
    if content is not None:
        (models / "bad.gguf").write_bytes(content)
    status, said = _up(tmp_path, '[[models]]\nname = "bad"\npath = "bad.gguf"')
    assert status == 1
    assert expected in said


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in an odd folder, behind a proxy that is not there, with a model that embeds."""
    folder = tmp_path_factory.mktemp("odd") / 'a "b" c'
    folder.mkdir()
    name = mean_file(TEST_FILES / "models")
    more = f'[[models]]\nname = "mean"\npath = "{name}"\ncontext_length = 512'
    environ = {"http_proxy": "http://127.0.0.1:9"}
    with running_service(folder, small=False, extra=more, environ=environ) as running:
        yield running


def test_a_folder_with_a_space_and_a_proxy_in_the_environment_are_no_trouble(odd: Service) -> None:
    assert odd.redis.config_get("dir")["dir"] == str(odd.data_dir / "redis")


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, said = _up(tmp_path, LLMIS_DATA_DIR=str(tmp_path / "file" / "var"))
    assert status == 1
    assert "LLMIS_DATA_DIR" in said


def test_a_configured_model_that_embeds_is_waited_for_like_others(odd: Service) -> None:
    vectors = odd.openai().embeddings.create(model="mean", input="17").data
    assert len(vectors) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_stopping_leaves_no_process(tmp_path: Path, signum: int) -> None:
    with running_service(tmp_path, small=False) as running:
        kinds = ("gunicorn", "worker.replica", "valkey-server")
        assert all(running.pids(kind) for kind in kinds)
        running.process.send_signal(signum)
        status = running.process.wait(40)
    assert status == (-signum if signum == signal.SIGKILL else 0)
    wait_for(lambda: not running.pids(), "no process is left")
    assert not list(tmp_path.rglob("*.partial"))


def test_stopping_cuts_open_requests_off_so_that_clients_see_it(tmp_path: Path) -> None:
    """A stream and a whole answer. SIGTERM leaves no process, either."""
    with running_service(tmp_path, small=False) as running:
        assert load(running, "long", context_length=16384)[0] == 200
        (replica,) = running.pids("worker.replica", "long@")
        whole, stream = _ask_for_long(running, False), _ask_for_long(running, True)
        keys = [names.log_key(request_id) for request_id in ("whole", "stream")]
        wait_for(lambda: all(running.redis.llen(key) > 1 for key in keys), "both requests run")
        with stopped(replica):  # so that they do not end
            response = stream.getresponse()
            received = response.read(100)
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(http.client.IncompleteRead) as cut_off:
                received += response.read()
            assert b"[DONE]" not in received + cut_off.value.partial
            response = whole.getresponse()
            assert response.status == 503
            assert json.loads(response.read())["error"]["code"] == "going_away"
        assert running.process.wait(60) == 0
        wait_for(lambda: not running.pids(), "no process is left", 60)


def _ask_for_long(service: Service, is_stream: bool) -> http.client.HTTPConnection:
    payload = {"model": "long", "prompt": "5", "max_tokens": 16_000, "stream": is_stream}
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    headers = {"x-request-id": "stream" if is_stream else "whole"}
    connection.request("POST", "/v1/completions", json.dumps(payload), headers)
    return connection


def _listening(service: Service) -> set[str]:
    """Addresses, as /proc/net/tcp writes them, that processes of the service listen on."""
    addresses = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            addresses[f"socket:[{fields[9]}]"] = fields[1]
    found = set()
    for pid in service.pids():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(addresses.get(str(descriptor.readlink()), ""))
    return found - {""}


def test_everything_listens_on_loopback_only(service: Service) -> None:
    wait_for(lambda: len(_listening(service)) == 3, "web, Flower and Redis listen")
    assert all(address.startswith("0100007F:") for address in _listening(service))


def test_a_second_service_on_the_same_data_folder_is_refused(own_service: Service) -> None:
    environment = {**os.environ, "LLMIS_CONFIG": str(own_service.data_dir / "llmis.toml")}
    environment |= {"LLMIS_DATA_DIR": str(own_service.data_dir), "LLMIS_PORT": str(free_port())}
    result = subprocess.run(
        [sys.executable, "-m", "cli", "up"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "another llmis runs on the data folder" in result.stderr
