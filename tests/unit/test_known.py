"""Files that rules are about are found on the host and known by what they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentwatch import abi, known
from agentwatch.known import Found, search
from agentwatch.mounts import Mounts
from agentwatch.rules.model import Condition, Match, Place, Rule, Ruleset

HERE = Place("rules.yaml", 1, 1)


def rule(*values: str, how: str = "", on: str = "read", action: str = "kill", **more: str) -> Rule:
    """On the path; more: exceptions by path."""
    condition = Condition("path", values, frozenset(how.split()), HERE)
    exceptions = tuple((name, Match((Condition("path", (v,)),))) for name, v in more.items())
    return Rule("one", (on,), Match((condition,)), action, HERE, unless=exceptions)


def host_of(place: Path) -> Mounts:
    dev = os.stat(place).st_dev
    return Mounts({os.major(dev) << 20 | os.minor(dev): ((b"", b"/"),)})


def found(place: Path, *rules: Rule, homes: tuple[str, ...] = ()) -> set[str]:
    """Names below the place."""
    told = search(Ruleset(rules, homes=homes), host_of(place))
    assert told.cut == ""
    return {os.path.relpath(os.fsdecode(file.name), place) for file in told.files}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Keys in homes, some deep, one behind a link."""
    top = tmp_path.resolve()
    for name in ("a/.ssh/id_rsa", "a/.ssh/deep/key", "a/notes", "b/.ssh/id_rsa", "b/x/y/z/w"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "linked").symlink_to("a")
    (top / "a" / "link").symlink_to("notes")
    return top


def test_what_is_written_out_is_found_where_it_is(place: Path) -> None:
    """Files alone: no directories, no symbolic links, nothing that is not there."""
    assert found(place, rule(f"{place}/a/notes", f"{place}/a/gone")) == {"a/notes"}
    assert found(place, rule(f"{place}/a", f"{place}/a/link")) == set()
    assert found(place, rule(f"{place}/linked/notes", f"{place}/linked/*")) == set()


def test_globs_are_looked_for_from_their_first_component(place: Path) -> None:
    """Inside one component, over many, in braces, with any modifier that is anchored."""
    assert found(place, rule(f"{place}/?/.ssh/id_*")) == {"a/.ssh/id_rsa", "b/.ssh/id_rsa"}
    assert found(place, rule(f"{place}/a/.ssh/**")) == {"a/.ssh/id_rsa", "a/.ssh/deep/key"}
    assert found(place, rule(f"{place}/**/key")) == {"a/.ssh/deep/key"}
    assert found(place, rule(f"{place}/{{a/notes,b/none}}")) == {"a/notes"}
    assert found(place, rule(f"{place}/a/no", how="startswith")) == {"a/notes"}


def test_what_floats_is_looked_for_in_homes(place: Path) -> None:
    """Three directories deep; and `~` is every home."""
    homes = (f"{place}/a", f"{place}/b")
    both = {"a/.ssh/id_rsa", "b/.ssh/id_rsa"}
    assert found(place, rule("**/id_rsa"), homes=homes) == both
    assert found(place, rule("_rsa", how="endswith"), homes=homes) == both
    assert found(place, rule("~/.ssh/id_rsa"), homes=homes[:1]) == {"a/.ssh/id_rsa"}
    assert found(place, rule("**/{key,w}"), homes=homes) == {"a/.ssh/deep/key"} - {"b/x/y/z/w"}
    assert found(place, rule("**/id_rsa")) == set()


def test_only_what_restricts_is_looked_for(place: Path) -> None:
    """No allow and no alert, no connect, and nothing that an exception by name spares."""
    name = f"{place}/a/**"
    assert found(place, rule(name, action="allow"), rule(name, action="alert")) == set()
    spared = rule(name, ssh=f"{place}/a/.ssh/**")
    assert found(place, spared) == {"a/notes"}
    assert found(place, rule("$own", "$project/x", f"{place}/a/notes")) == {"a/notes"}


def test_every_value_of_a_condition_that_wants_all_must_cover_it(place: Path) -> None:
    """`path|startswith|all` is one prefix and another."""
    wanted = rule(f"{place}/a/", f"{place}/a/n", how="startswith all")
    assert found(place, wanted) == {"a/notes"}


def test_a_program_of_several_names_is_not_known_for_one_of_them(place: Path) -> None:
    """Rules on exec alone: a multi-call program is another one under each name."""
    os.link(place / "a" / "notes", place / "a" / "other")
    assert found(place, rule(f"{place}/a/notes", on="exec")) == set()
    assert found(place, rule(f"{place}/a/notes", on="read")) == {"a/notes"}


def test_a_file_whose_device_no_mount_has_is_not_known(place: Path) -> None:
    """Nor one whose name is too long for the kernel."""
    one = Ruleset((rule(f"{place}/a/notes"),))
    assert search(one, Mounts({})) == Found((), 1, "")
    long = place / ("n" * 200) / ("n" * 60)
    long.parent.mkdir()
    long.write_text("")
    assert len(str(long)) > abi.KNOWN_MAX
    assert search(Ruleset((rule(str(long)),)), host_of(place)).nameless == 1


def test_a_file_whose_name_is_gone_is_known_on(place: Path) -> None:
    """Somebody may have it by another name; one that was replaced is another file."""
    wanted, host = Ruleset((rule(f"{place}/a/*"),)), host_of(place)
    (first,) = search(wanted, host).files
    assert first.generation is not None, "the file system of temporary files tells none"
    os.rename(place / "a" / "notes", place / "elsewhere")
    assert search(wanted, host).files == ()
    assert search(wanted, host, (first,)).files == (first,)
    (place / "a" / "notes").write_text("new")
    (second,) = search(wanted, host, (first,)).files
    assert second.inode != first.inode


def test_a_search_that_ends_early_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By names, by files, and when nobody wants to know any more; what was found by then counts."""
    wanted = Ruleset((rule(f"{place}/a/notes", f"{place}/**"),))
    assert search(wanted, host_of(place), stopped=lambda: True).cut == "before its time"
    monkeypatch.setattr(known, "MOST_FILES", 2)
    told = search(wanted, host_of(place))
    assert (len(told.files), told.cut) == (2, "after 2 files")
    monkeypatch.setattr(known, "MOST_ENTRIES", 1)
    told = search(wanted, host_of(place))
    assert (len(told.files), told.cut) == (1, "after 1 names")
