"""The commands of `llmis`, their options and exit statuses: scripts and supervisors
rely on them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import redis
from click.testing import CliRunner

from cli.main import cli
from tests.contract.frozen_file import assert_frozen
from tests.support import fake_service
from tests.support.cli_answers import MODEL, NODE
from tests.support.fake_service import Reply

_ROOT = Path(__file__).parent.parent.parent
_CLOSED = "127.0.0.1:1"
"""No process of a user can listen there."""


# -- options -------------------------------------------------------------------------------------


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{name} is listed"
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


_COMMANDS = {"llmis": cli, **dict(_commands(cli, "llmis"))}


def _context(command: click.Command, path: str) -> click.Context:
    """As click makes it for a run: the names of the help option come from `llmis`."""
    parent = None if command is cli else _context(cli, "llmis")
    return click.Context(command, parent, info_name=path, **command.context_settings)


def _parameters(command: click.Command, path: str) -> dict[str, Any]:
    context = _context(command, path)
    found: dict[str, Any] = {}
    for parameter in command.get_params(context):
        names = [*parameter.opts, *parameter.secondary_opts]
        found[" ".join(names)] = {
            "is": parameter.param_type_name,
            "is_required": parameter.required,
            "may_be_repeated": parameter.multiple if isinstance(parameter, click.Option) else False,
            "is_flag": getattr(parameter, "is_flag", False),
            "choices": list(getattr(parameter.type, "choices", [])),
            "environment": parameter.envvar,
        }
    return found


def test_commands_and_options() -> None:
    found = {path: _parameters(command, path) for path, command in _COMMANDS.items()}
    assert_frozen("cli/options.json", found)


@pytest.mark.parametrize("path", _COMMANDS)
def test_help_names_every_option(path: str) -> None:
    command = _COMMANDS[path]
    context = _context(command, path)
    text = command.get_help(context)
    options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    assert all(name in text for option in options for name in option.opts)


# -- exit statuses -------------------------------------------------------------------------------

_URL = ["--url", f"http://{_CLOSED}"]
_ENDS: list[tuple[list[str], int]] = [
    (["--help"], 0),
    (["-h"], 0),
    (["--version"], 0),
    (["models", "load", "--help"], 0),
    ([], 2),
    (["nonsense"], 2),
    (["status", "--nonsense"], 2),
    (["complete"], 2),
    (["complete", "x", "--temperature", "3", *_URL], 2),
    (["check", "nonsense"], 2),
    (["status", "--url", "nonsense"], 2),
    (["keys", "create", "ann", "--expires", "never"], 2),
    (["status", *_URL], 1),
    (["ps", *_URL], 1),
    (["nodes", *_URL], 1),
    (["models", "list", *_URL], 1),
    (["models", "load", "m", *_URL], 1),
    (["models", "unload", "m", *_URL], 1),
    (["restart", *_URL], 1),
    (["chat", *_URL], 1),
    (["complete", "x", *_URL], 1),
    (["doctor", *_URL], 1),
    (["keys", "create", "ann"], 1),
    (["keys", "list"], 1),
    (["keys", "revoke", "ann"], 1),
    (["check", "web"], 1),
    (["check", "flower"], 1),
    (["check", "agent"], 1),
]
"""Arguments of runs without a service and without Redis, and how they end."""
_OF_PROCESSES: list[tuple[list[str], int]] = [
    (["--version"], 0),
    (["nonsense"], 2),
    (["status", *_URL], 1),
    (["agent"], 1),
    (["up"], 1),
]
"""The same of whole processes: a Python takes seconds to start on a busy machine."""
_WITH_BAD_SETTINGS = ["web", "agent", "flower", "status", "keys list", "check web"]


def _environment(tmp_path: Path) -> dict[str, str]:
    """Redis and the web tier do not answer; the settings are those of a service without
    either."""
    config = tmp_path / "llmis.toml"
    config.write_text('node_name = "n"\nport = 1\nflower_port = 1\n[[models]]\n'
                      'name = "m"\npath = "m.gguf"\n')  # fmt: skip
    return {
        "REDIS_URL": f"redis://{_CLOSED}/0",
        "LLMIS_CONFIG": str(config),
        "LLMIS_DATA_DIR": str(tmp_path),
    }


def _status(module: str, arguments: list[str], tmp_path: Path, **environ: str) -> int:
    """Exit status of a process."""
    others = {n: v for n, v in os.environ.items() if not n.startswith("LLMIS_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tmp_path,
        env={**others, "PYTHONPATH": str(_ROOT), **_environment(tmp_path), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def _status_here(arguments: list[str], tmp_path: Path, **environ: str) -> int:
    """Exit status of the command, run in this process."""
    others = {n: None for n in os.environ if n.startswith("LLMIS_")}
    runner = CliRunner(env={**others, **_environment(tmp_path), **environ})
    return runner.invoke(cli, arguments, prog_name="llmis", catch_exceptions=False).exit_code


@pytest.mark.parametrize(("arguments", "status"), _ENDS, ids=[" ".join(a) for a, _ in _ENDS])
def test_exit_status(arguments: list[str], status: int, tmp_path: Path) -> None:
    assert _status_here(arguments, tmp_path) == status


@pytest.mark.parametrize(("arguments", "status"), _OF_PROCESSES)
def test_exit_status_of_a_process(arguments: list[str], status: int, tmp_path: Path) -> None:
    assert _status("cli", arguments, tmp_path) == status


def test_every_command_has_an_exit_status_here() -> None:
    named = {" ".join(["llmis", *arguments]) for arguments, _ in [*_ENDS, *_OF_PROCESSES]}
    named |= {f"llmis {command}" for command in _WITH_BAD_SETTINGS}
    ends = [path for path, command in _COMMANDS.items() if not isinstance(command, click.Group)]
    assert [p for p in ends if not any(n == p or n.startswith(f"{p} ") for n in named)] == []


@pytest.mark.parametrize("command", _WITH_BAD_SETTINGS)
def test_bad_settings_end_with_status_1(command: str, tmp_path: Path) -> None:
    assert _status_here(command.split(), tmp_path, LLMIS_PORT="nonsense") == 1


def test_flower_that_is_turned_off_ends_with_status_1(tmp_path: Path) -> None:
    assert _status_here(["flower"], tmp_path, LLMIS_FLOWER_PORT="0") == 1


@pytest.mark.parametrize(("is_ready", "status"), [(True, 0), (False, 1)])
def test_the_status_of_a_service(is_ready: bool, status: int, tmp_path: Path) -> None:
    ready = Reply({"status": "ready"}) if is_ready else Reply({"reasons": ["no"]}, 503)
    replies = {
        "GET /version": Reply({"version": "0"}),
        "GET /readyz": ready,
        "GET /admin/models": Reply({"object": "list", "data": [MODEL]}),
        "GET /admin/nodes": Reply({"object": "list", "data": [NODE]}),
    }
    with fake_service.running(replies) as running:
        assert _status_here(["status", "--url", running.url], tmp_path) == status
        assert _status_here(["nodes", "--json"], tmp_path, LLMIS_URL=running.url) == 0


def test_an_interrupt_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def read(self) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    with pytest.raises(SystemExit) as ended:
        cli(["complete", "-", *_URL], prog_name="llmis")
    assert ended.value.code == 130


# -- the processes themselves --------------------------------------------------------------------


def test_a_replica_without_arguments(tmp_path: Path) -> None:
    assert _status("worker.replica", [], tmp_path) == 2


def test_a_replica_whose_redis_does_not_answer_is_worth_another_try(tmp_path: Path) -> None:
    assert _status("worker.replica", ["m@n-1", "m@n-1-2"], tmp_path) == 75


def test_a_replica_without_an_assignment(server: redis.Redis, tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'redis.sock'}"
    assert _status("worker.replica", ["m@n-1", "m@n-1-2"], tmp_path, REDIS_URL=url) == 1


def test_an_agent_whose_redis_does_not_answer(tmp_path: Path) -> None:
    assert _status("worker.agent", [], tmp_path) == 1
