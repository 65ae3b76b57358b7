"""Files that the rules are about, found by name on this host and known by what they are.

A name is where a rule looks; the file behind it may get others: a hard link, a layer of an overlay,
a bind mount of the file itself. So the files that deny and kill rules name are looked for when a
policy comes into force, and the kernel is told device, inode and generation of each: whatever it is
opened by then, it is judged by the name it was found under as well.

What is covered, and what is not:

    /etc/shadow, ~/.aws/*      looked for from the first component that is written out
    ~/.ssh/**                  DEPTH directories deep
    **/id_rsa, endswith        in homes, HOME_DEPTH directories deep, and nowhere else
    rules on exec alone        files with one name only: of several, each may be another program
    $project, $own, re         not: they depend on the session, or cover anything
    links on the way           not followed: a rule means canonical names
    btrfs, some overlays       not, where stat(2) gives another device than the mount has

A file that comes later is known by its name alone until it is looked for again (RENEW).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from agentwatch import abi
from agentwatch.mounts import Mounts
from agentwatch.policy import patterns
from agentwatch.policy.globs import ANY_COMPONENTS, PATH, Component, rows
from agentwatch.policy.index import PatternIndex
from agentwatch.rules.model import Condition, Match, Rule, Ruleset

RENEW = 300.0  # s between two searches
DEPTH, HOME_DEPTH = 4, 3
MOST_FILES, MOST_ENTRIES, MOST_SECONDS = 8192, 20_000, 5.0
_KINDS = frozenset({"exec", "read", "change", "open"})
_LITERALLY = frozenset({"startswith", "endswith", "contains"})
_GETVERSION = 0x80087601  # FS_IOC_GETVERSION
_VARIABLES = ("$project", "$own")


@dataclass(frozen=True, slots=True)
class File:
    """dev: kernel dev_t. generation: of the inode; None where the file system does not tell."""

    dev: int
    inode: int
    generation: int | None
    name: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """The files of one search. nameless: those that cannot be known by what they are. cut: why not
    everything was looked at, "" where it was.
    """

    files: tuple[File, ...] = ()
    nameless: int = 0
    cut: str = ""


class Wanted:
    """What the restricting rules of a ruleset say of names."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.homes = ruleset.homes
        self._bits: dict[tuple[str, frozenset[str]], int] = {}
        self._rules = [
            (
                set(rule.on) == {"exec"},
                self._conditions(rule.match),
                [self._conditions(one) for one in _of_path(rule)],
            )
            for rule in ruleset.rules
            if _restricts(rule)
        ]
        self.alternatives = tuple(self._bits)
        self._index = PatternIndex(
            [patterns.expression(text, PATH, how, self.homes) for text, how in self._bits],
            PATH,
            literals=[patterns.literals((text,), PATH, how) for text, how in self._bits],
        )

    def covers(self, path: str, links: int = 1) -> bool:
        """Whether a rule is about a file of this name, whoever opens it and however.

        links: names that the file has. A program of several is a different one under each: what
        rules on exec alone say of one name is not said of the others.
        """
        found = self._index.bits(path)
        return any(
            _holds(match, found) and not any(_holds(one, found) for one in exceptions)
            for runs, match, exceptions in self._rules
            if links == 1 or not runs
        )

    def _conditions(self, match: Match) -> list[tuple[int, bool]]:
        """Of each condition on the name: a mask, and whether every bit of it is asked for."""
        found = []
        for condition in match.conditions:
            if condition.field != "path":
                continue
            values = [value for value in condition.values if _is_fixed(condition, value)]
            every = "all" in condition.modifiers
            mask = 0 if every and len(values) < len(condition.values) else self._mask(condition)
            found.append((mask, every))
        return found

    def _mask(self, condition: Condition) -> int:
        mask = 0
        for value in condition.values:
            if _is_fixed(condition, value):
                key = value, condition.modifiers - {"all"}
                mask |= 1 << self._bits.setdefault(key, len(self._bits))
        return mask


def _restricts(rule: Rule) -> bool:
    named = any(condition.field == "path" for condition in rule.match.conditions)
    return rule.action in ("deny", "kill") and named and not _KINDS.isdisjoint(rule.on)


def _of_path(rule: Rule) -> Iterator[Match]:
    """The exceptions that a name alone fulfils."""
    for _, match in rule.unless:
        if match.conditions and all(one.field == "path" for one in match.conditions):
            yield match


def _is_fixed(condition: Condition, value: str) -> bool:
    return "re" not in condition.modifiers and not any(word in value for word in _VARIABLES)


def _holds(conditions: Sequence[tuple[int, bool]], found: int) -> bool:
    return all(
        mask and (found & mask == mask if every else found & mask) for mask, every in conditions
    )


class _Cut(Exception):
    """There is more than is looked at."""


class _Search:
    def __init__(self, wanted: Wanted, mounts: Mounts, stopped: Callable[[], bool]) -> None:
        self._wanted, self._mounts, self._stopped = wanted, mounts, stopped
        self._seen = self.nameless = 0
        self._until = time.monotonic() + MOST_SECONDS
        self.files: dict[tuple[int, int], File] = {}
        self._taken: set[str] = set()

    def alternative(self, text: str, how: frozenset[str]) -> None:
        """Everything that one value of a condition may cover."""
        if "startswith" in how and "nocase" not in how:
            for place in self._at_home(text):
                self._below(os.path.dirname(place), (ANY_COMPONENTS,), DEPTH)
            return
        if how & (_LITERALLY | {"nocase"}):
            return  # it may be anywhere
        homes = self._wanted.homes if patterns.is_at_home(text, PATH) else ()
        for row in rows(text.removeprefix("~") if homes else text, PATH):
            if row[0] == () and row[1] != ANY_COMPONENTS:
                for top in homes or ("",):
                    self._below(top or "/", row[1:], DEPTH)

    def homes(self) -> None:
        """What floats: the same look at every home serves all of it."""
        for home in self._wanted.homes:
            self._below(home, (ANY_COMPONENTS,), HOME_DEPTH)

    def _at_home(self, text: str) -> Iterable[str]:
        if not patterns.is_at_home(text, PATH):
            return (text,)
        return (home + text[1:] for home in self._wanted.homes)

    def _below(self, directory: str, row: Sequence[Component], depth: int) -> None:
        if not row or not _is_directory(directory):
            return
        component, rest = row[0], row[1:]
        every = component == ANY_COMPONENTS
        if not every and all(atom.kind == "text" for atom in component):
            path = os.path.join(directory, "".join(atom.text for atom in component))
            if rest:
                self._below(path, rest, depth)
            else:
                self._take(path)
            return
        for entry in self._entries(directory):
            if not every and not _may_cover(component, entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if every and depth > 1:
                    self._below(entry.path, row, depth - 1)
                elif not every:
                    self._below(entry.path, rest, depth)
            elif (every or not rest) and entry.is_file(follow_symlinks=False):
                self._take(entry.path)

    def _entries(self, directory: str) -> Iterator[os.DirEntry[str]]:
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                self._seen += 1
                if self._seen > MOST_ENTRIES:
                    raise _Cut(f"after {MOST_ENTRIES} names")
                if time.monotonic() > self._until:
                    raise _Cut(f"after {MOST_SECONDS:.0f} s")
                if self._stopped():
                    raise _Cut("before its time")
                yield entry

    def _take(self, path: str) -> None:
        if path in self._taken or not self._wanted.covers(path):
            return
        self._taken.add(path)
        try:
            found = os.lstat(path)
        except OSError:
            return
        dev = os.major(found.st_dev) << 20 | os.minor(found.st_dev)
        name = os.fsencode(path)
        if not stat.S_ISREG(found.st_mode) or not self._wanted.covers(path, found.st_nlink):
            return
        if dev not in self._mounts or len(name) > abi.KNOWN_MAX:
            self.nameless += 1
            return
        generation = _generation(path, found)
        self.files.setdefault((dev, found.st_ino), File(dev, found.st_ino, generation, name))
        if len(self.files) >= MOST_FILES:
            raise _Cut(f"after {MOST_FILES} files")


def search(
    ruleset: Ruleset,
    mounts: Mounts,
    before: Iterable[File] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Found:
    """The files there are by now. Takes MOST_SECONDS at most.

    mounts: of this host. before: what the search before has found: a file whose name is gone may be
    there by another one, and is known on. stopped: whether nobody wants to know any more.
    """
    wanted = Wanted(ruleset)
    looking = _Search(wanted, mounts, stopped)
    cut = ""
    try:
        # What is written out first: it is found soonest.
        for text, how in sorted(wanted.alternatives, key=lambda one: one[0].count("*")):
            looking.alternative(text, how)
        if any(map(_floats, wanted.alternatives)):
            looking.homes()
    except _Cut as error:
        cut = str(error)
    for file in before:
        if file.generation is not None and (cut or not os.path.lexists(file.name)):
            looking.files.setdefault((file.dev, file.inode), file)
    files = tuple(looking.files.values())[:MOST_FILES]
    return Found(files, looking.nameless, cut)


def _floats(alternative: tuple[str, frozenset[str]]) -> bool:
    text, how = alternative
    if how & {"endswith", "contains", "nocase"}:
        return True
    return not how and any(ANY_COMPONENTS in row[:2] for row in rows(text, PATH))


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _may_cover(component: Component, name: str) -> bool:
    """By its first and last characters: what is left is asked of the whole name."""
    first, last = component[0], component[-1]
    begins = first.kind != "text" or name.startswith(first.text)
    return begins and (last.kind != "text" or name.endswith(last.text))


def _generation(path: str, found: os.stat_result) -> int | None:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    try:
        opened = os.open(path, flags | os.O_NOATIME)
    except OSError:
        return None
    try:
        now = os.fstat(opened)
        if (now.st_dev, now.st_ino) != (found.st_dev, found.st_ino):
            return None
        told = fcntl.ioctl(opened, _GETVERSION, bytes(8))
        return int(struct.unpack_from("<I", told)[0])
    except OSError:
        return None
    finally:
        os.close(opened)
