"""Every process of a service is restarted while it serves, and nobody notices."""

import subprocess
import sys
import threading

from tests.conftest import ROOT, Service, wait_for
from tests.support.admin_client import Completion, admin, load, model, unload
from tests.support.counter_model import expected_text
from tests.support.paused_replica import slowed_model

_NUM_TOKENS = 3000


def _restart(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "restart", "--url", service.url, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _replicas(service: Service) -> set[str]:
    views = admin(service, "/models")[1]["data"]
    return {r["id"] for view in views for r in view["replicas"] if r["state"] == "ready"}


def test_a_rolling_restart_under_load_fails_no_request(own_service: Service) -> None:
    """Of a model with two replicas and of one with a single replica."""
    assert unload(own_service, "counter")[0] == 200
    assert load(own_service, "pair", replicas=2, slots=8, context_length=4096)[0] == 200
    replicas = _replicas(own_service)
    (agent,) = admin(own_service, "/nodes")[1]["data"]
    web = admin(own_service, "/web")[1]
    with slowed_model(own_service, "pair"):
        stream = Completion(own_service, "pair", _NUM_TOKENS).read(2)
        reader = threading.Thread(target=stream.read)  # who does not read is cut off some day
        reader.start()
        done = _restart(own_service, "--load", "2", "--model", "pair")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failed" in done.stdout
    assert "0 tokens lost, 0 doubled" in done.stdout
    reader.join()
    assert stream.text == expected_text(5, _NUM_TOKENS)
    stream.close()  # or its process would wait for another request on the connection
    assert not _replicas(own_service) & replicas
    assert len(_replicas(own_service)) == len(replicas)
    (later,) = admin(own_service, "/nodes")[1]["data"]
    assert later["started_at"] > agent["started_at"]
    # Until it looks at its signals again it accepts connections besides the new one.
    wait_for(lambda: web["pid"] not in own_service.pids("app.wsgi"), "the old web process ends")
    assert admin(own_service, "/web")[1]["started_at"] > web["started_at"]
    # The new agent keeps what the old one kept.
    assert unload(own_service, "pair")[0] == 200
    assert model(own_service, "pair") is None


def test_a_request_that_fails_is_counted(own_service: Service) -> None:
    """The load asks a model that is unloaded in between."""
    for name in ("counter", "counter-small"):
        assert unload(own_service, name)[0] == 200
    assert load(own_service, "passing")[0] == 200
    replicas = _replicas(own_service)
    command = [sys.executable, "-m", "cli", "restart", "--url", own_service.url]
    process = subprocess.Popen(
        [*command, "--load", "2", "--model", "passing"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: _replicas(own_service) - replicas, "it restarts replicas", 60)
    unload(own_service, "passing", mode="now")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
