"""New code under a running web tier, and SIGHUP."""

import http.client
import json
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jwt
import psutil
import redis
from cryptography.hazmat.primitives.asymmetric import ec

from shared import api_keys
from shared.api_keys import Scope
from tests.conftest import Service, wait_for
from tests.support import alone, image

_WEB = [sys.executable, "-m", "cli", "web"]
_RULES = """
[[rules]]
name = "{name}"
literals = ["{word}"]
action = "refuse"
"""


def _get(service: Service, path: str) -> Any:
    with urllib.request.urlopen(f"{service.url}{path}", timeout=60) as answer:
        return json.load(answer)


def _pid(service: Service) -> int:
    """Of the web process that answers; 0 = none does."""
    try:
        return int(_get(service, "/admin/web")["pid"])
    except OSError:
        return 0


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


class _Asking:
    """Asks all the time, with a connection each."""

    def __init__(self, service: Service) -> None:
        self.errors: list[Exception] = []
        self.num_answers = 0
        self._service = service
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(0.02):
            try:
                _get(self._service, "/admin/web")
            except (OSError, ValueError) as exc:
                self.errors.append(exc)
            self.num_answers += 1


def test_new_code_of_all_modules_is_served_after_sighup_and_broken_code_never(
    tmp_path: Path,
) -> None:
    code = tmp_path / "code"
    image.lay_out(code)
    with (
        alone.environment(tmp_path) as environment,
        environment.started(_WEB, code, PYTHONDONTWRITEBYTECODE="1") as service,
    ):
        wait_for(lambda: _pid(service), "it answers", 60)
        with _Asking(service) as asking:
            first = _pid(service)

            _edit(
                code / "app" / "api" / "health.py", "import", "import nothing_of_this_name\nimport"
            )
            service.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "serve on" in environment.output(), "the new one has failed", 60)
            assert _pid(service) == first
            _edit(code / "app" / "api" / "health.py", "import nothing_of_this_name\n", "")

            # What the master has loaded, too, changes: its workers must not have the old one.
            _edit(
                code / "shared" / "errors.py",
                "class GoingAway(",
                "class Novelty(LlmisError): ...\n\n\nclass GoingAway(",
            )
            _edit(code / "app" / "server" / "drain.py", "GoingAway\n", "GoingAway, Novelty as _\n")
            _edit(
                code / "app" / "server" / "worker.py", "LlmisError\n", "LlmisError, Novelty as _\n"
            )
            _edit(code / "shared" / "version.py", 'VERSION = "', 'VERSION = "new-')
            service.process.send_signal(signal.SIGHUP)
            wait_for(lambda: _get(service, "/version")["version"].startswith("new-"), "new", 60)
            wait_for(lambda: _pid(service) != first, "the old one ends", 60)
        assert not asking.errors
        assert asking.num_answers
        assert service.process.poll() is None


def test_web_processes_start_with_broken_key_and_denylist_files_but_not_the_first(
    tmp_path: Path,
) -> None:
    denylist, jwks = tmp_path / "denylist.toml", tmp_path / "jwks.json"
    more = {"LLMIS_AUTH": "true", "LLMIS_DENYLIST": str(denylist), "LLMIS_JWT_JWKS": str(jwks)}
    more |= {"LLMIS_JWT_ISSUER": "https://issuer.test", "LLMIS_JWT_AUDIENCE": "llmis"}
    key = jwt.algorithms.ECAlgorithm.to_jwk(
        ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True
    )
    with alone.environment(tmp_path) as environment:
        denylist.write_text(_RULES.format(name="old", word="x"))
        jwks.write_text("{}")
        with environment.started(_WEB, **more) as service:
            assert service.process.wait(60) != 0
        assert "jwt_jwks" in environment.output()
        jwks.write_text(json.dumps({"keys": [{**key, "kid": "1"}]}))
        with environment.started(_WEB, **more) as service:
            wait_for(lambda: _status(service) == 200, "it answers", 60)
            client = redis.Redis.from_url(environment.variables["REDIS_URL"])
            user, _ = api_keys.create(client, "test", Scope.USER)
            # The rules of now are those that hold later, not those of the start.
            denylist.write_text(_RULES.format(name="new-rule", word="forbidden"))
            wait_for(lambda: "denylist read again" in environment.output(), "read", 60)
            assert "new-rule" in _refusal(service, user)
            denylist.write_text("broken")
            jwks.write_text("broken")
            (worker,) = psutil.Process(service.process.pid).children()
            worker.kill()
            wait_for(lambda: "Known keys: 0" in environment.output(), "a new one starts", 60)
            wait_for(lambda: _status(service) == 200, "it answers", 60)
            assert "new-rule" in _refusal(service, user)
        assert "the denylist stays as it was" in environment.output()


def _status(service: Service) -> int:
    try:
        with urllib.request.urlopen(f"{service.url}/healthz", timeout=60) as answer:
            return int(answer.status)
    except OSError:
        return 0


def _refusal(service: Service, key: str) -> str:
    """The error for a prompt that the denylist has."""
    body = {"model": "counter", "prompt": "a forbidden word", "max_tokens": 1}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{service.url}/v1/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60):
            return ""
    except urllib.error.HTTPError as exc:
        return exc.read().decode()


def test_the_first_start_of_broken_code_is_an_end(tmp_path: Path) -> None:
    code = tmp_path / "code"
    image.lay_out(code)
    _edit(code / "app" / "api" / "health.py", "import", "import nothing_of_this_name\nimport")
    with alone.environment(tmp_path) as environment, environment.started(_WEB, code) as service:
        assert service.process.wait(60) != 0


def test_a_killed_worker_is_replaced_while_an_old_one_serves_on(tmp_path: Path) -> None:
    with alone.environment(tmp_path) as environment, environment.started(_WEB) as service:
        wait_for(lambda: _pid(service), "it answers", 60)
        idle = http.client.HTTPConnection("127.0.0.1", service.port)
        idle.request("GET", "/admin/web")
        old = json.load(idle.getresponse())["pid"]
        service.process.send_signal(signal.SIGHUP)
        new = wait_for(lambda: (pid := _pid(service)) != old and pid, "a new one answers", 60)
        os.kill(new, signal.SIGKILL)
        wait_for(lambda: _pid(service) not in (0, new), "another one answers", 60)
        idle.request("GET", "/admin/web")
        assert json.load(idle.getresponse())["pid"] == old
        idle.close()
