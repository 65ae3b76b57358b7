"""What the kernel does about an event, by who is asked there: a hook, or the probes afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentwatch.compiling import compile_here
from agentwatch.kernel.lsm import HOOKS
from agentwatch.policy import patterns
from agentwatch.policy.answering import Answer, answer
from agentwatch.policy.image import DENY, KILL, LOOK, Image
from agentwatch.policy.levels import Host
from agentwatch.rules import sample
from agentwatch.rules.load import load

SIGNAL = Host(cgroup=True)
LSM = Host(frozenset(HOOKS), cgroup=True)
RULES = """\
schema: agentwatch/v1
rules:
  - {id: t.read, title: R, on: read, match: {path: "/k/**"}, action: deny, because: R, tests: []}
  - {id: t.kill, title: K, on: read, match: {path: "/x/**"}, action: kill, because: K, tests: []}
  - {id: t.args, title: A, on: exec, match: {path: "/bin/git", "args|has": "--force"},
     unless: {dry: {"args|has": "--dry"}}, action: deny, because: A, tests: []}
  - {id: t.exec, title: E, on: exec, match: {path: "/bin/rm"}, action: deny, because: E, tests: []}
  - {id: t.del, title: D, on: change, match: {path: "/d/*", op: delete}, action: deny, because: D,
     tests: []}
"""


def answered(place: Path, host: Host, kind: str, mode: str = "enforce", **fields: Any) -> Answer:
    file = place / "rules.yaml"
    file.write_text(RULES)
    ruleset = load([file], homes=("/root",), patterns=patterns)
    compiled = compile_here(ruleset, host, mode, room=1 << 22)
    made = sample.samples(kind, fields, (), None)[0]
    found = answer(compiled, Image(compiled.image), made.event, made.actor, host)
    assert found is not None
    return found


@pytest.mark.parametrize(("path", "verdict"), [("/k/a", DENY), ("/x/a", KILL), ("/o", 0)])
def test_a_hook_refuses_what_the_probes_kill_for(tmp_path: Path, path: str, verdict: int) -> None:
    """A deny is one where that can be refused; a kill is both."""
    found = answered(tmp_path, LSM, "read", path=path)
    assert (found.decision.verdict, found.refused) == (verdict, bool(verdict))
    found = answered(tmp_path, SIGNAL, "read", path=path)
    assert (found.decision.verdict, found.refused) == (KILL if verdict else 0, False)


@pytest.mark.parametrize(
    ("args", "verdict"), [(("--force",), DENY), (("--force", "--dry"), 0), (("pull",), 0)]
)
def test_arguments_are_asked_for_again_where_they_could_not_be_read(
    tmp_path: Path, args: tuple[str, ...], verdict: int
) -> None:
    """Refused where the hook has them, killed where it has not; an exception holds in both."""
    found = answered(tmp_path, LSM, "exec", path="/bin/git", argv=("git", *args))
    assert (found.decision.verdict, found.refused) == (verdict, verdict == DENY)
    assert (found.unread.verdict if found.unread else 0) == (KILL if verdict else 0)
    found = answered(tmp_path, LSM, "exec", path="/bin/rm", argv=("rm", *args))
    assert (found.decision.verdict, found.unread) == (DENY, None)


def test_a_change_is_refused_by_its_own_hook(tmp_path: Path) -> None:
    """Where there is none, the probes tell of it and the engine decides."""
    delete = {"op": "delete", "path": "/d/x"}
    assert answered(tmp_path, LSM, "change", **delete).decision.verdict == DENY
    without = Host(LSM.lsm - {"lsm_path_unlink"}, cgroup=True)
    for host in (without, SIGNAL):
        found = answered(tmp_path, host, "change", **delete)
        assert (found.decision.verdict, found.refused) == (LOOK, False)


def test_a_directory_is_not_moved_with_what_is_denied_below_it(tmp_path: Path) -> None:
    """By the rule on reading that is about it; a directory beside it may go."""
    moved = {"op": "rename", "new_path": "/else"}
    found = answered(tmp_path, LSM, "change", path="/k", **moved)
    assert (found.decision.verdict, found.refused) == (DENY, True)
    assert answered(tmp_path, LSM, "change", path="/m", **moved).decision.verdict == 0
    assert answered(tmp_path, SIGNAL, "change", path="/k", **moved).decision.verdict == 0


def test_a_file_keeps_a_name_by_which_it_is_denied(tmp_path: Path) -> None:
    """That of a program, of what may not be read; any other name it may have."""
    for path, new, verdict in (("/bin/rm", "/bin/del", DENY), ("/bin/cat", "/bin/rm", 0)):
        for op in ("rename", "link"):
            found = answered(tmp_path, LSM, "change", path=path, op=op, new_path=new)
            assert found.decision.verdict == verdict


def test_a_symbolic_link_makes_no_denied_name(tmp_path: Path) -> None:
    """Below `/d` nothing may be deleted; below `/k` nothing may be read, which is no change."""
    link = {"op": "symlink", "path": "/d"}
    assert answered(tmp_path, LSM, "change", **link).decision.verdict == DENY
    assert answered(tmp_path, LSM, "change", **link | {"path": "/k"}).decision.verdict == 0


def test_in_observe_mode_nothing_is_refused(tmp_path: Path) -> None:
    """The engine is shown what it would be asked."""
    found = answered(tmp_path, LSM, "read", "observe", path="/k/a")
    assert (found.decision.verdict, found.refused) == (LOOK, False)
