"""The patterns of a set as one nondeterministic automaton, shaped like a trie.

Patterns that begin alike share their nodes, and everything behind a `~` hangs below one node, which
the path of each home leads to. A node has moves: on a class of bytes to some nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from agentwatch.policy.dfa import FIRST_CLASS
from agentwatch.policy.items import ALL, CONTINUED, Home, Item, Pattern, Step

_READ = ("one", "character")  # kinds of steps that take a byte

MANY = -1
"""In the place of a mark: several."""

Nodes: TypeAlias = tuple[int, ...]
"""Nodes in order, each once."""


class Trie:
    """The automaton of some patterns.

    root: where it begins. final, sticky: by node, the marks it accepts at the end of a subject and
    wherever it is. leading: nodes that are met in every directory, found with `apart`. sure: by
    node the marks that are accepted now, or if anything follows. only: by node the one mark that it
    and what is behind it can accept, or MANY.
    """

    def __init__(self, patterns: Iterable[Pattern], floating: bool, apart: bool = False) -> None:
        self._kids: list[dict[int | Step, int]] = []
        self._loops: dict[int, int] = {}
        self._more: dict[int, list[tuple[int, int]]] = {}
        self._free: dict[int, list[int]] = {}
        self._begins: dict[int, int] = {}
        self._homes: dict[Home, int] = {}
        self._sets: set[int] = set()
        self.final: dict[int, list[int]] = {}
        self.sticky: dict[int, list[int]] = {}
        self.root = self._node()
        every = list(patterns)
        if floating:
            separator = next((pattern.separator for pattern in every), 0)
            self.root = self._rows(self.root, ALL & ~(1 << separator))
        for pattern in every:
            place = self._walk(self.root, pattern.items)
            (self.sticky if pattern.sticky else self.final).setdefault(place, []).append(
                pattern.mark
            )
        self._closed: list[Nodes | None] = [None] * len(self._kids)
        self.only = [MANY] * len(self._kids)
        self.sure: dict[int, list[int]] = {}
        self._special = {*self._loops, *self._more, *self._free}
        self.leading = self._leading(floating) if apart else frozenset[int]()
        self._share()

    def __len__(self) -> int:
        return len(self._kids)

    def sets(self) -> set[int]:
        """The sets of bytes that tell nodes apart."""
        single = {key for kids in self._kids for key in kids if isinstance(key, int)}
        return self._sets | {1 << byte for byte in single}

    def closed(self, node: int) -> Nodes:
        """A node and where it leads without a byte, less what leads nowhere and accepts nothing."""
        known = self._closed[node]
        if known is None:
            free = self._free.get(node)
            if free is None:
                known = (node,)
            else:
                found = {other for one in free for other in self.closed(one)}
                if self._matters(node):
                    found.add(node)
                known = tuple(sorted(found))
            self._closed[node] = known
        return known

    def behind(self, node: int) -> tuple[list[int], list[int]]:
        """Where a node leads by a byte, and without one; there is no way back but to itself."""
        inside = self._begins.get(node)
        free = [kid for kid in self._free.get(node, ()) if kid != inside]
        steps = self._kids[node].items()
        read = [kid for key, kid in steps if isinstance(key, int) or key.kind in _READ]
        read += [kid for _, kid in self._more.get(node, ())]
        if node in self._loops:
            read.append(node)
        return read, free

    def _leading(self, floating: bool) -> frozenset[int]:
        """What begins anywhere has its beginning in every directory: there, and behind the first
        separator of what is looked for in the middle of a text, too.
        """
        separator = ord("/")
        first = self._kids[self.root].get(separator)
        tops = [self.root] if floating else self._rows_of(self.root)
        if not floating and first is not None:
            tops += self._rows_of(first)
        found: set[int] = set()
        for top in tops:
            for node in self._freely(top):
                found.add(node)
                kid = self._kids[node].get(separator) if self._loops.get(node) == ALL else None
                found.update(() if kid is None else self._freely(kid))
        return frozenset(found)

    def _rows_of(self, node: int) -> list[int]:
        """Where a `**` behind a node begins."""
        kids = self._kids[node].items()
        return [kid for key, kid in kids if not isinstance(key, int) and key.kind == "rows"]

    def _freely(self, node: int) -> Iterator[int]:
        """A node, and where it leads without a byte."""
        yield node
        for kid in self._free.get(node, ()):
            yield from self._freely(kid)

    def _matters(self, node: int) -> bool:
        steps = self._kids[node]
        return (
            node in self._loops
            or node in self._more
            or node in self.final
            or node in self.sticky
            or any(isinstance(key, int) or key.kind in _READ for key in steps)
        )

    def moves(self, node: int) -> tuple[list[tuple[int, Nodes]], list[tuple[int, Nodes]]]:
        """On a byte, and on any byte of a set, where a node leads."""
        single, several = [], []
        for key, kid in self._kids[node].items():
            if isinstance(key, int):
                single.append((key, self.closed(kid)))
            elif key.kind in _READ:
                several.append((key.members, self.closed(kid)))
        loop = self._loops.get(node)
        if loop is not None:
            several.append((loop, (node,)))
        several += [(members, self.closed(kid)) for members, kid in self._more.get(node, ())]
        return single, several

    def _share(self) -> None:
        """Makes one node of those that do the same, from the leaves up, and finds sure and only.

        A kid's number is greater than its parent's, but for homes and what parts components: nodes
        that lead to those stay apart.
        """
        same = list(range(len(self._kids)))
        known: dict[object, int] = {}
        free, more = self._free, self._more
        for node in range(len(self._kids) - 1, -1, -1):
            kids = self._kids[node]
            for key, kid in kids.items():
                kids[key] = same[kid]
            if node in free:
                free[node] = [same[kid] for kid in free[node]]
            if node in more:
                more[node] = [(members, same[kid]) for members, kid in more[node]]
            same[node] = known.setdefault(self._described(node), node)
            self._judge(node)
        self.root = same[self.root]

    def _described(self, node: int) -> object:
        """What is the same for nodes that do the same."""
        kids = self._kids[node]
        steps = next(iter(kids.items())) if len(kids) == 1 else frozenset(kids.items())
        marked = node in self.final or node in self.sticky
        if not marked and node not in self._special and node not in self.leading:
            return steps
        free = self._free.get(node, [])
        inside = self._begins.get(node)
        return (
            steps,
            self._loops.get(node),
            tuple(self._more.get(node, ())),
            # Between components a `**` does what every other does.
            (tuple(free), None)
            if inside is None
            else (tuple(kid for kid in free if kid != inside), self._loops[inside]),
            frozenset(self.final.get(node, ())),
            frozenset(self.sticky.get(node, ())),
            node if node in self.leading else None,
        )

    def _judge(self, node: int) -> None:
        """Finds sure and only, once those of the kids are known."""
        kids = self._kids[node]
        behind = {self.only[kid] for kid in kids.values()}
        behind.update(self.final.get(node, ()), self.sticky.get(node, ()))
        if node in self._special:
            inside = self._begins.get(node)
            behind.update(self.only[kid] for kid in self._free.get(node, ()) if kid != inside)
            behind.update(self.only[kid] for _, kid in self._more.get(node, ()))
            end = ALL & ~self._loops.get(node, ALL)
            leaf = kids.get(end.bit_length() - 1) if end.bit_count() == 1 else None
            if leaf in self.sticky:
                self.sure[node] = self.sticky[leaf]
        if node in self.sticky:
            self.sure[node] = self.sticky[node]
        if len(behind) == 1:
            (self.only[node],) = behind

    def _node(self) -> int:
        self._kids.append({})
        return len(self._kids) - 1

    def _walk(self, node: int, items: Sequence[Item]) -> int:
        """The node behind the items from a node on, made if there was none."""
        every = self._kids
        for item in items:
            if isinstance(item, bytes):
                for byte in item:
                    kids = every[node]
                    kid = kids.get(byte)
                    if kid is None:
                        kid = kids[byte] = len(every)
                        every.append({})
                    node = kid
            elif isinstance(item, Home):
                node = self._home(node, item)
            else:
                kid = every[node].get(item)
                node = self._step(node, item) if kid is None else kid
        return node

    def _step(self, node: int, step: Step) -> int:
        self._sets.add(step.members)
        if step.kind == "rows":
            kid = self._kids[node][step] = self._rows(node, step.members)
            return kid
        kid = self._kids[node][step] = self._node()
        if step.kind == "many":
            self._free.setdefault(node, []).append(kid)
            self._loops[kid] = step.members
        elif step.kind == "character":
            self._sets.add(CONTINUED)
            self._loops[kid] = CONTINUED
        for row in step.also:
            self._others(node, row, kid)
        return kid

    def _rows(self, node: int, members: int) -> int:
        """The beginning of a component, any number of components behind a node."""
        self._sets |= {members, ALL & ~members}
        begin, inside = self._node(), self._node()
        self._begins[begin] = inside
        self._free.setdefault(node, []).append(begin)
        self._free[begin] = [inside]
        self._loops[inside] = members
        self._more[inside] = [(ALL & ~members, begin)]
        return begin

    def _others(self, node: int, row: bytes, kid: int) -> None:
        """A second way from a node to one of its kids."""
        for byte in row[:-1]:
            between = self._node()
            self._link(node, byte, between)
            node = between
        self._link(node, row[-1], kid)

    def _link(self, node: int, byte: int, kid: int) -> None:
        self._sets.add(1 << byte)
        self._more.setdefault(node, []).append((1 << byte, kid))

    def _home(self, node: int, home: Home) -> int:
        known = self._homes.get(home)
        if known is None:
            known = self._homes[home] = self._node()
            for directory in home.directories:
                self._free.setdefault(self._walk(node, directory), []).append(known)
        return known


class Classes:
    """Bytes that no pattern tells apart are one class.

    numbers: of each byte its class, from FIRST_CLASS up. width: the number after the last.
    dullest: the class of most bytes.
    """

    def __init__(self, sets: Iterable[int]) -> None:
        groups = [ALL]
        for members in sorted(sets):
            groups = [
                part for group in groups for part in (group & members, group & ~members) if part
            ]
            if len(groups) == 256:
                break
        groups.sort(key=lambda group: group & -group)
        self.numbers = [0] * 256
        for number, group in enumerate(groups, FIRST_CLASS):
            for byte in range(256):
                if group >> byte & 1:
                    self.numbers[byte] = number
        self.width = FIRST_CLASS + len(groups)
        widest = max(groups, key=lambda group: group.bit_count())
        self.dullest = FIRST_CLASS + groups.index(widest)
        self._known: dict[int, Nodes] = {}

    def of(self, members: int) -> Nodes:
        """The classes of a set of bytes."""
        known = self._known.get(members)
        if known is None:
            found = {self.numbers[byte] for byte in range(256) if members >> byte & 1}
            known = self._known[members] = tuple(sorted(found))
        return known
