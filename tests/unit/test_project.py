"""`$project`: where an agent works, found out without waiting for anybody's file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agentwatch.project import answers_at_once, project_here, project_of

MOUNTINFO = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
40 22 0:40 / /mnt/My\\040NAS rw - nfs4 server:/ rw
41 22 0:41 / /home/dev/remote rw - fuse.sshfs dev@host: rw
"""


@pytest.mark.parametrize(
    ("path", "answers"),
    [
        ("/home/dev/project", True),
        ("/home/dev/remote", False),
        ("/home/dev/remote/deep/in", False),
        ("/home/dev/remotely", True),
        ("/mnt/My NAS/project", False),
    ],
)
def test_what_somebody_else_answers_for_is_not_looked_into(path: str, answers: bool) -> None:
    """A remote or a user's own file system may keep us waiting for ever."""
    assert answers_at_once(path, MOUNTINFO) is answers


def test_a_git_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """It may lead to such a file system; that it is there is enough."""
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "work" / ".git").symlink_to("/nonexistent/place")
    assert project_of(tmp_path / "work" / "deep", "/home/x") == str(tmp_path / "work")


def test_a_place_of_another_mount_namespace_is_no_project() -> None:
    """Its name says nothing about any file here."""
    assert project_here("[8:1]/srv", "/home/dev") is None
    assert project_here("/", "/home/dev") is None
    assert project_here(os.path.realpath("/usr"), "/home/dev") == os.path.realpath("/usr")
