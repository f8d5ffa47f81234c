"""The file of the denylist: what is taken, what is refused, and how it is read again."""

import os
from pathlib import Path

import pytest
import re2

from shared.denylist.denylist import Denylist, read
from shared.denylist.file import DenylistFile, check_denylist, denylist_of
from shared.denylist.matcher import folded
from shared.denylist.rule import Rule
from shared.errors import SettingsError
from shared.settings.fields import Settings


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "denylist.toml"
    path.write_text(text)
    return path


_RULE = '[[rules]]\nname = "a"\naction = "mask"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rules = ", "not readable as TOML"),
        ("colour = 1", "unknown field `colour`"),
        ('[[rules]]\nname = "a"\naction = "shout"\nliterals = ["x"]', "rule 'a': Invalid enum"),
        ('[[rules]]\nname = "a b"\naction = "mask"\nliterals = ["x"]', "rule 'a b': Expected"),
        ('[[rules]]\naction = "mask"\nliterals = ["x"]', "missing required field `name`"),
        (_RULE, "rule 'a': it needs either literals or a regex"),
        (_RULE + 'literals = ["x"]\nregex = "y"', "rule 'a': it needs either literals or a regex"),
        (_RULE + 'literals = [""]', "rule 'a': Expected `str` of length >= 1"),
        (_RULE + 'literals = ["x"]\ncolour = 1', "rule 'a': Object contains unknown field"),
        (_RULE + 'literals = ["x"]\n' + _RULE + 'literals = ["y"]', "the name is given twice"),
        (_RULE + 'literals = ["x"]\non = "prompt"', "mask works on output only"),
        (_RULE.replace("mask", "truncate") + 'literals = ["x"]\non = "both"', "truncate works on"),
        (_RULE + 'regex = ""', "rule 'a': regex: it matches the empty text"),
        (_RULE + 'regex = "a*"', "rule 'a': regex: it matches the empty text"),
        (_RULE + "regex = '(?=a)b'", "invalid perl operator: (?= (the syntax is RE2's"),
        (_RULE + "regex = '(?<!a)b'", "no lookaround"),
        (_RULE + "regex = '(a)\\1'", "no back-references"),
        (_RULE + "regex = '(a'", "missing ): (a"),
        (_RULE + "regex = 'a{1001}'", "invalid repetition size"),
        (_RULE + "regex = '((((a{100}){100}){100}){100})b'", "rule 'a': regex:"),
        (_RULE + "regex = 'a\\C'", "would match parts of characters"),
        (_RULE + 'regex = "a"\nmax_chars = 0', "rule 'a': Expected `int` >= 1"),
        (_RULE + f'literals = ["{"x" * 257}"]', "rule 'a': Expected `str` of length <= 256"),
        (_RULE + f'regex = "{"x" * 2001}"', "rule 'a': Expected `str` of length <= 2000"),
        ("".join(_RULE.replace('"a"', f'"a{n}"') + 'regex = "a"\n' for n in range(1001)),
         "1001 rules; at most 1000"),
        (_RULE + f"literals = {[str(n) for n in range(20001)]}", "20001 literals"),
        ("#" * 2_100_000, "2100000 bytes; at most"),
        (_RULE + 'literals = ["x"]\nmodels = ["a/b"]', "rule 'a': Expected `str` matching"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_rule_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_rules_hold_where_they_say(tmp_path: Path) -> None:
    denylist = read(_write(tmp_path, (
        '[[rules]]\nname = "all"\naction = "refuse"\nliterals = ["x"]\n'
        '[[rules]]\nname = "one"\naction = "tag"\non = "prompt"\nmodels = ["m"]\nregex = "y+"\n'
        '[[rules]]\nname = "out"\naction = "mask"\nmodels = ["n"]\nliterals = ["z"]\n'
    )))  # fmt: skip
    on_m, on_n = denylist.on_prompts("m"), denylist.on_prompts("n")
    assert on_m is not None
    assert on_n is not None
    assert on_m.refuse is not None
    assert [rule.name for rule in on_m.refuse.rules_in("a X b")] == ["all"]
    assert on_m.refuse.rules_in("a b") == []
    assert on_m.tag is not None
    assert on_n.tag is None
    out_m, out_n = denylist.on_output("m"), denylist.on_output("n")
    assert out_m is not None
    assert out_n is not None
    assert out_m.mask is None
    assert out_m.end is not None
    assert out_n.mask is not None
    empty = read(_write(tmp_path, ""))
    assert empty.on_prompts("m") is None
    assert empty.on_output("m") is None


def test_all_rules_that_match_a_prompt_are_named() -> None:
    rules = [Rule(name=name, action="tag", literals=[name]) for name in ("aa", "bb", "cc")]
    found = Denylist(rules).on_prompts("m")
    assert found is not None
    assert found.tag is not None
    assert [r.name for r in found.tag.rules_in("cc AA cc \ud800")] == ["cc", "aa"]


def test_case_folding_is_that_of_re2() -> None:
    """All that RE2 takes for the same is the same here: else half a match would be let out."""
    everything = map(chr, [*range(0xD800), *range(0xE000, 0x20000)])
    cased = [c for c in everything if {c.lower(), c.upper(), c.casefold()} != {c}]
    text = "".join(cased).encode()
    options = re2.Options()
    options.case_sensitive = False
    for char in cased:
        for match in re2.compile(re2.escape(char), options).finditer(text):
            assert folded(match.group().decode()) == folded(char)
    assert all(len(folded(char)) == 1 for char in cased)


def test_a_file_is_read_again_when_it_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path, _RULE + 'literals = ["x"]')
    file = DenylistFile(path, tmp_path)
    first = file.current
    file.refresh()
    assert file.current is first
    path.write_text("broken")
    for _ in range(3):
        file.refresh()
    assert file.current is first
    path.unlink()
    file.refresh()
    file.refresh()
    assert file.current is first
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    _write(tmp_path, _RULE + 'literals = ["yy"]')
    os.utime(path, ns=(1, 1))
    file.refresh()
    assert file.current.rules[0].literals == ["yy"]


def test_a_process_that_starts_with_an_invalid_file_takes_the_last_valid_one(
    tmp_path: Path,
) -> None:
    settings = Settings(denylist="rules.toml", base_dir=str(tmp_path), data_dir="data")
    path = tmp_path / "rules.toml"
    path.write_text("broken")
    with pytest.raises(SettingsError, match=r"rules\.toml: not readable as TOML"):
        denylist_of(settings)
    for literal in ("a", "x"):
        path.write_text(_RULE + f'literals = ["{literal}"]')
        assert denylist_of(settings) is not None
    path.write_text("broken")
    file = denylist_of(settings)
    assert file is not None
    assert file.current.rules[0].literals == ["x"]
    with pytest.raises(SettingsError, match=r"rules\.toml"):
        check_denylist(settings)
    path.write_text(_RULE + 'literals = ["yy"]')
    file.refresh()
    assert file.current.rules[0].literals == ["yy"]
    check_denylist(settings)
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_the_rules_of_another_file_are_not_taken(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(_RULE + 'literals = ["x"]')
    second.write_text("broken")
    DenylistFile(first, tmp_path / "data")
    with pytest.raises(SettingsError, match=r"b\.toml"):
        DenylistFile(second, tmp_path / "data")


def test_a_file_without_rules_is_valid_but_not_kept(tmp_path: Path) -> None:
    path = _write(tmp_path, _RULE + 'literals = ["x"]')
    file = DenylistFile(path, tmp_path / "data")
    path.write_text("")
    file.refresh()
    assert file.current.rules == []
    path.write_text("broken")
    assert DenylistFile(path, tmp_path / "data").current.rules[0].literals == ["x"]


def test_the_kept_file_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, _RULE + 'literals = ["x"]')
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda *a: (steps.append("replace"), replace(*a))[1])
    DenylistFile(path, tmp_path / "data")
    assert steps == ["fsync", "replace"]


def test_rules_hold_though_they_cannot_be_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path, _RULE + 'literals = ["x"]')
    (tmp_path / "data").write_text("a file where the folder should be")
    file = DenylistFile(path, tmp_path / "data")
    assert file.current.rules[0].literals == ["x"]
    assert "cannot be kept" in caplog.text


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    assert denylist_of(Settings()) is None
    with pytest.raises(SettingsError, match=r"none\.toml"):
        denylist_of(Settings(denylist="none.toml", base_dir=str(tmp_path)))


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = _write(tmp_path, "\ufeff" + _RULE + 'literals = ["x"]')
    assert [rule.name for rule in read(path).rules] == ["a"]
    for _ in range(2):  # the second one reads the kept file, too
        assert [rule.name for rule in DenylistFile(path, tmp_path).current.rules] == ["a"]
        path.write_text("rules = ")
