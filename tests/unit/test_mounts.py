"""Canonical names: from /proc/PID/mountinfo to the name a person at the console would type."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agentwatch.mounts import Mounts, Namespace

# A Debian machine: /home on its own disk, a bind mount of a directory of it, a tmpfs, an overlay.
DEBIAN = b"""\
22 28 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
28 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw,errors=remount-ro
31 28 8:3 / /home rw,relatime shared:2 - ext4 /dev/sda3 rw
40 28 8:3 /dev/www /srv/www rw,relatime shared:2 - ext4 /dev/sda3 rw
41 28 0:40 / /tmp rw,nosuid - tmpfs tmpfs rw
42 28 0:50 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=a,upperdir=b
43 28 0:4 net:[4026532281] /run/netns/a rw shared:9 - nsfs nsfs rw
"""
# openSUSE: directories are subvolumes of one file system, the top of which is mounted as well.
BTRFS = b"""\
28 1 0:30 /@/.snap/1/now / rw shared:1 - btrfs /dev/sda2 rw,subvolid=9,subvol=/@/.snap/1/now
31 28 0:30 /@home /home rw shared:2 - btrfs /dev/sda2 rw,subvolid=5,subvol=/@home
32 28 0:30 /@home/dev/data /srv/data rw shared:2 - btrfs /dev/sda2 rw,subvolid=5,subvol=/@home
33 28 0:30 / /mnt/pool rw shared:3 - btrfs /dev/sda2 rw,subvolid=5,subvol=/
"""


def device(major: int, minor: int) -> int:
    return major << 20 | minor


DISK, ROOT, POOL = device(8, 3), device(8, 2), device(0, 30)


@pytest.mark.parametrize(
    ("dev", "path", "name"),
    [
        (ROOT, b"/etc/passwd", "/etc/passwd"),
        (ROOT, b"", "/"),
        (ROOT, b"/", "/"),
        (DISK, b"/dev/.ssh/id_rsa", "/home/dev/.ssh/id_rsa"),
        (DISK, b"", "/home"),
        (device(0, 40), b"/x", "/tmp/x"),
        (device(0, 50), b"/etc/shadow", "/var/lib/docker/overlay2/x/merged/etc/shadow"),
    ],
)
def test_a_name_is_its_mount_point_and_its_path(dev: int, path: bytes, name: str) -> None:
    """Each file system by its own mount; the root of one has no slash at its end."""
    assert Mounts.parse(DEBIAN).name(dev, path) == name


def test_mounts_that_name_their_file_system_are_plain() -> None:
    """By their ids: not a bind mount of a directory, nor the same disk mounted a second time."""
    again = b"60 28 8:3 / /media/again rw - ext4 /dev/sda3 rw\n"
    assert set(Mounts.parse(DEBIAN).plain(DEBIAN + again)) == {22, 28, 31, 41, 42, 43}
    assert set(Mounts.parse(b"").plain(DEBIAN)) == set()


def test_a_bind_mount_of_a_directory_renames_nothing() -> None:
    """What lies in /srv/www is known by where its file system is mounted whole."""
    assert Mounts.parse(DEBIAN).name(DISK, b"/dev/www/index.html") == "/home/dev/www/index.html"


def test_where_only_directories_are_mounted_the_widest_names_it() -> None:
    """Inside a container: /etc/hosts and a data directory, but never the whole file system."""
    mounts = Mounts.parse(
        b"50 1 8:3 /lib/c/1/hosts /etc/hosts rw - ext4 /dev/sda3 rw\n"
        b"51 1 8:3 /lib /data rw - ext4 /dev/sda3 rw\n"
    )
    assert mounts.name(DISK, b"/lib/c/1/hosts") == "/data/c/1/hosts"
    assert mounts.name(DISK, b"/library/x") == "[8:3]/library/x"


def test_among_equals_the_oldest_mount_is_taken() -> None:
    """The same disk mounted a second time somewhere else changes no name."""
    again = b"60 28 8:3 / /media/again rw - ext4 /dev/sda3 rw\n"
    assert Mounts.parse(DEBIAN + again).name(DISK, b"/x") == "/home/x"


@pytest.mark.parametrize("order", [1, -1])
def test_btrfs_subvolumes_are_named_by_their_own_mounts(order: int) -> None:
    """Also where the top of the pool is mounted, and whichever was mounted first."""
    mounts = Mounts.parse(b"\n".join(BTRFS.splitlines()[::order]))
    assert mounts.name(POOL, b"/@home/dev/.ssh/id_rsa") == "/home/dev/.ssh/id_rsa"
    assert mounts.name(POOL, b"/@home/dev/data/x") == "/home/dev/data/x"
    assert mounts.name(POOL, b"/@/.snap/1/now/etc/passwd") == "/etc/passwd"
    assert mounts.name(POOL, b"/@/.snap/2/now/x") == "/mnt/pool/@/.snap/2/now/x"
    assert mounts.name(POOL, b"/@homework/x") == "/mnt/pool/@homework/x"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (rb"/media/My\040Disk", "/media/My Disk"),
        (rb"/media/tab\011here", "/media/tab\there"),
        (rb"/media/new\012line", "/media/new\nline"),
        (rb"/media/back\134040slash", r"/media/back\040slash"),
        (rb"/media/hash\043", "/media/hash#"),
        ("/media/münchen\\040süd".encode(), "/media/münchen süd"),
        (b"/media/\xff\\040x", os.fsdecode(b"/media/\xff x")),
    ],
)
def test_escapes_in_mount_points_are_undone_once(written: bytes, name: str) -> None:
    """proc(5) writes some bytes in octal; all others stand for themselves, UTF-8 or not."""
    mounts = Mounts.parse(b"36 28 8:9 / " + written + b" rw - ext4 /dev/sdb1 rw\n")
    assert mounts.name(device(8, 9), b"/x") == f"{name}/x"


def test_an_unknown_device_is_named_by_its_number() -> None:
    """Never by a mount point that is not its own."""
    mounts = Mounts.parse(DEBIAN)
    assert device(259, 70000) not in mounts
    assert mounts.name(device(259, 70000), b"/x") == "[259:70000]/x"


def test_names_keep_bytes_that_are_no_text() -> None:
    """os.fsencode gives the kernel's bytes back."""
    name = Mounts.parse(DEBIAN).name(DISK, b"/dev/\xff\n")
    assert os.fsencode(name) == b"/home/dev/\xff\n"


def test_cut_lines_and_an_empty_table_are_no_error() -> None:
    """A table that could not be read names files from their own file system's root."""
    assert Mounts.parse(b"\n22 28 0:21\n").name(5, b"/x") == "[0:5]/x"
    assert Mounts.read(Path("/proc/does/not/exist")) == Mounts({})


def test_the_journal_gets_the_same_table_back() -> None:
    """rows and from_rows are inverse."""
    mounts = Mounts.parse(DEBIAN)
    rows = [(dev, [tuple(row) for row in pairs]) for dev, pairs in mounts.rows()]  # type: ignore[attr-defined]
    assert Mounts.from_rows(rows) == mounts  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", [b"cr\rx", b"vt\x0bx", b"ff\x0cx", b"nel\x85x", b"fs\x1cx"])
def test_only_a_newline_ends_a_row(odd: bytes) -> None:
    """A mount point may have every other byte: it is one row, and those after it are read."""
    rows = b"36 28 8:9 / /mnt/" + odd + b" rw - ext4 /dev/sdb1 rw\n" + DEBIAN
    mounts = Mounts.parse(rows)
    assert os.fsencode(mounts.name(device(8, 9), b"/f")) == b"/mnt/" + odd + b"/f"
    assert mounts.name(DISK, b"/x") == "/home/x"


@pytest.mark.parametrize("row", [b"x", b"1 2 3 4 5 6", b"1 2 8:x / /mnt rw", b"1 2 8:1:2 / /m rw"])
def test_a_row_that_is_none_is_left_out(row: bytes) -> None:
    """It names nothing, and the others do."""
    assert Mounts.parse(row + b"\n" + DEBIAN) == Mounts.parse(DEBIAN)


MOUNTED = (
    "mount -t tmpfs tmpfs $0; read go; mkdir $0/in; mount -t tmpfs tmpfs $0/in; echo; read end"
)


@pytest.mark.root
def test_a_namespace_tells_of_its_changes_and_of_nothing_else(tmp_path: Path) -> None:
    """Of a mount within it, once; not of unknown devices, not of a mount elsewhere."""
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"echo; {MOUNTED}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*line, str(tmp_path)], **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "\n"
        while os.fsencode(tmp_path) not in (
            seen := Path(f"/proc/{other.pid}/mountinfo").read_bytes()
        ):
            pass
        found = Namespace(Mounts.parse(seen), Path(f"/proc/{other.pid}/mountinfo"))
        assert not found.changed()
        assert not found.looked_up(device(259, 70000))
        print("go", file=other.stdin, flush=True)
        assert other.stdout.readline() == "\n"
        assert found.changed()
        assert not found.changed()
        (dev,) = {row[0] for row in found.mounts.rows()} - {
            row[0] for row in Mounts.parse(seen).rows()
        }
        assert found.mounts.name(dev, b"/f") == f"{tmp_path}/in/f"  # type: ignore[arg-type]
        found.close()
        other.communicate()


def test_what_changed_before_one_looked_is_told(tmp_path: Path) -> None:
    """A table that was read a while ago is compared with the one there is now."""
    namespace = Namespace(Mounts({}), Path("/proc/self/mountinfo"))
    assert namespace.changed()
    assert not namespace.changed()
    namespace.close()
    assert not Namespace(Mounts({}), tmp_path / "none").changed()


def test_this_machines_own_table_is_read() -> None:
    """Every device of a real mountinfo is known by its number, and no row is lost."""
    mounts = Mounts.read(Path("/proc/self/mountinfo"))
    lines = Path("/proc/self/mountinfo").read_bytes().rstrip(b"\n").split(b"\n")
    devices = {device(*map(int, line.split(b" ")[2].split(b":"))) for line in lines}
    assert devices
    assert all(dev in mounts for dev in devices)
    assert sum(len(pairs) for _, pairs in mounts.rows()) == len(lines)  # type: ignore[arg-type]


def test_a_hierarchy_of_control_groups_has_its_name_in_a_namespace_further_down() -> None:
    """There its mount's root is told as the way up to it."""
    line = b"51 47 0:32 /../.. /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    mounts = Mounts.parse(line)
    assert mounts.name(device(0, 32), b"/a/b") == "/sys/fs/cgroup/memory/a/b"
