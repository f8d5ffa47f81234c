"""Another version of llmis, run by its own Python."""

import sys
from pathlib import Path

import pytest

from bench import checkout
from bench.checkout import HERE, Checkout
from bench.measure import Stalled


def test_a_script_runs_in_its_folder_and_imports_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMIS_PORT", "1")
    (tmp_path / "shared.py").write_text("name = 'that of the other one'\n")
    other = Checkout("other", tmp_path, sys.executable)
    script = "import os, shared, sys; print(shared.name, os.getcwd(), sys.argv[1:], end=' ')"
    script += "; print('LLMIS_PORT' in os.environ)"
    said = other.run(script, "64", limit_s=60).decode()
    assert said.split("other one ")[1].split() == [str(tmp_path), "['64']", "False"]


def test_a_script_that_fails_or_hangs_is_reported() -> None:
    with pytest.raises(RuntimeError, match="no engine"):
        HERE.run("raise SystemExit('no engine')", limit_s=60)
    with pytest.raises(Stalled, match=r"llmis has not ended after 0\.1 s"):
        HERE.run("import time; time.sleep(60)", limit_s=0.1)


def test_a_checkout_without_an_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \.venv"):
        checkout.other(tmp_path)


@pytest.mark.parametrize("there", ["1.0", "2.0"])
def test_a_checkout_must_have_the_same_build_of_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(
        Checkout, "facts", lambda self: {"xllamacpp": "2.0" if self == HERE else there}
    )
    if there == "2.0":
        assert checkout.other(tmp_path) == Checkout(tmp_path.name, tmp_path, str(python))
    else:
        with pytest.raises(ValueError, match=r"has xllamacpp 1\.0, and this one 2\.0"):
            checkout.other(tmp_path)
