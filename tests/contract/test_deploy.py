"""What no test here can run, Docker and compose, names only what exists; so do the other files
of deploy/."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.main import _COMMANDS
from shared.settings.fields import Settings
from shared.settings.load import NOT_IN_ENVIRONMENT, env_name
from tests.conftest import ROOT
from tests.support import image

COMPOSE: dict[str, Any] = msgspec.yaml.decode((ROOT / "docker-compose.yml").read_bytes())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DOCUMENT = ROOT / "docs" / "deployment.md"
FILES = [
    ROOT / "Dockerfile",
    ROOT / "docker-compose.yml",
    ROOT / "Procfile",
    DOCUMENT,
    *(path for path in (ROOT / "deploy").rglob("*") if path.is_file()),
]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("llmis")]
_LAST_REPLICAS_S = 14
"""What `llmis up` gives an agent beyond `drain_grace_s`."""


def _instructions(name: str) -> list[str]:
    """The arguments of an instruction of the Dockerfile, each on one line."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_the_compose_file_is_one_by_the_compose_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*check, ROOT / "docker-compose.yml"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_variables_settings_and_commands_exist(path: Path) -> None:
    text = path.read_text()
    fields = [field.name for field in msgspec.structs.fields(Settings)]
    variables = {env_name(name) for name in fields if name not in NOT_IN_ENVIRONMENT}
    variables |= {"LLMIS_CONFIG", "LLMIS_URL", "LLMIS_API_KEY"}
    assert set(re.findall(r"\bLLMIS_[A-Z_]+\b", text)) <= variables
    commands = re.findall(r"(?:-m cli|\bllmis) ([a-z]+)\b(?=[\s`]|$)", _code(path), re.MULTILINE)
    assert set(commands) <= set(_COMMANDS)
    for module in re.findall(r"(?:python[0-9.]*|PYTHON) -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module


def _code(path: Path) -> str:
    """Without prose, in which "llmis" may stand before any word."""
    text = path.read_text()
    if path.suffix == ".md":
        found = re.findall(r"```sh\n(.*?)```|`(llmis [^`]*)`", text, re.DOTALL)
        text = "\n".join(block or f"{inline}\n" for block, inline in found)
    lines = (line.partition(" # ")[0] for line in text.splitlines())
    return "\n".join(line for line in lines if not line.lstrip().startswith(("#", "Description=")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_of_the_checkout_exist(path: Path) -> None:
    """Those under deploy, docs and tools that are named, at /opt/llmis or relative."""
    pattern = r"(?<![\w/.-])(?:/opt/llmis/|\./)?((?:deploy|docs|tools)/[\w./-]*\w)"
    for name in re.findall(pattern, path.read_text()):
        assert (ROOT / name).exists(), name


# -- Dockerfile ----------------------------------------------------------------------------------


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [
        ROOT / source
        for words in map(shlex.split, _instructions("COPY"))
        if not words[0].startswith("--from")
        for source in words[:-1]
    ]
    assert copied
    for path in copied:
        assert path.exists()
        assert path == ROOT or image.has(path)


def test_the_image_has_all_that_runs_and_nothing_else() -> None:
    needed = ["templates/chat.html", "static/chat.js", "shared/lua/admit.lua", "llmis.toml"]
    needed += [f"{module.replace('.', '/')}.py" for module in ("app.wsgi", "cli.__main__")]
    needed += ["tools/gpu/build_extension.py", "worker/agent/__main__.py", "celeryconfig.py"]
    needed += re.findall(r"[\w/.-]+\.(?:txt|py|toml)\b", " ".join(_instructions("RUN")))
    for name in needed:
        assert image.has(ROOT / name), name
    for name in (".git/config", ".env", "metrics-key", "var/redis.url", "tests/conftest.py"):
        assert not image.has(ROOT / name), name


def test_the_image_runs_as_nobody_special() -> None:
    assert set(_instructions("USER")) == {"10001:10001"}
    assert set(_instructions("VOLUME")) == {"/data"}
    for command in (*_instructions("ENTRYPOINT"), *_instructions("CMD")):
        assert command.startswith("["), "a shell would keep SIGTERM to itself"
    for name in re.findall(r"^FROM .* AS ([\w-]+)$", DOCKERFILE, re.MULTILINE):
        assert f"--from={name}" in DOCKERFILE or name in ("gpu", "cpu")


def test_cuda_is_the_one_that_torch_is_built_for() -> None:
    requirements = (ROOT / "requirements-gpu.txt").read_text()
    assert re.search(r"^torch==2\.11\.0$", requirements, re.MULTILINE)
    assert "CUDA_VERSION=13.0.2" in _instructions("ARG")


# -- compose -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "healthcheck" in service
    assert "privileged" not in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    for other, condition in service.get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]
    for network in service["networks"]:
        assert network in COMPOSE["networks"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, target, *mode = volume.split(":")
        assert target.startswith("/")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_a_command_a_key_and_time_to_drain(name: str) -> None:
    service = SERVICES[name]
    (command,) = service["command"]
    assert command in _COMMANDS
    assert service["healthcheck"]["test"][1:] == ["llmis", "check", command]
    assert service["environment"]["LLMIS_AUTH"] == "true"
    assert "data:/data" in service["volumes"]
    grace_s = float(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings().drain_grace_s + _LAST_REPLICAS_S
    target = service["build"]["target"]
    assert f" AS {target}\n" in DOCKERFILE


def test_ports_are_those_of_the_settings() -> None:
    settings = Settings()
    assert SERVICES["web"]["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    flower = settings.flower_port
    assert SERVICES["flower"]["ports"] == [f"127.0.0.1:{flower}:{flower}"]
    assert _instructions("EXPOSE") == [f"{settings.port} {flower}"]
    assert "ports" not in SERVICES["redis"]
    assert f"targets: [web:{settings.port}]" in (ROOT / "deploy/compose/prometheus.yml").read_text()


def test_agents_of_one_host_are_nodes_with_folders_of_their_own() -> None:
    agents = [SERVICES[name] for name in OURS if SERVICES[name]["command"] == ["agent"]]
    assert len(agents) == 2
    for key in ("LLMIS_DATA_DIR",):
        assert len({agent["environment"][key] for agent in agents}) == 2
    assert len({agent["hostname"] for agent in agents}) == 2
    assert {agent["environment"]["LLMIS_MODELS_DIR"] for agent in agents} == {"/data/models"}


def test_redis_keeps_what_is_queued() -> None:
    command = SERVICES["redis"]["command"][-1]
    for option in ("--requirepass", "--appendonly yes", "--maxmemory-policy noeviction"):
        assert option in command


def test_prometheus_has_the_same_rules_in_containers() -> None:
    scraped, inside = (
        msgspec.yaml.decode((ROOT / path).read_bytes())
        for path in ("deploy/prometheus/prometheus.yml", "deploy/compose/prometheus.yml")
    )
    assert inside["global"] == scraped["global"]
    mounted = next(v for v in SERVICES["prometheus"]["volumes"] if "deploy/prometheus" in v)
    folder = mounted.split(":")[1]
    assert inside["rule_files"] == [f"{folder}/{name}" for name in scraped["rule_files"]]


def test_every_password_is_in_the_sample() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    sample = (ROOT / "deploy/compose/env.example").read_text()
    assert asked == set(re.findall(r"^(\w+)=$", sample, re.MULTILINE))
