"""What a daemon takes over from the one before it, and leaves to the next.

Nothing in bpffs is touched before `commit`: a daemon that fails before leaves in force what was. At
`commit` its programs are pinned beside the others', one word makes them the ones that record, and
the others go. Killed at any point in between, it leaves a state that the next one goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentwatch import abi
from agentwatch.events import ProcessKey
from agentwatch.kernel import pins as pinning
from agentwatch.kernel.libbpf import Object, pin, pinned
from agentwatch.kernel.pins import BLOBS, Blob, Pins, Set

if TYPE_CHECKING:  # a start without anything to take over has no time for it
    from agentwatch.policy.compiler import Decided

GENERATIONS = 4  # policies whose rules are known to the next daemon


@dataclass(frozen=True, slots=True)
class Told:
    """Losses that the journal has. misses: runs skipped, by program, of the one that records."""

    counters: abi.Counters
    misses: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What came of it. skipped: runs of programs that are gone by now, and that nobody was told of.

    unread: records that sets of another version have taken along. replaced: those sets, by name.
    """

    skipped: int = 0
    unread: int = 0
    replaced: tuple[str, ...] = ()


class Keeping:
    """Of one loaded object, None where there is none that can be kept. pins: None keeps nothing.
    get, set_word: fields of aw_control.
    identity: what the policies' maps are laid out as. lasting: whether a program is to be kept.

    inherited: the maps are those of a daemon before this one. listened: ns of boottime up to which
    that one has read; waiting: records since; enforcing: programs that went on. told: what it has
    told of losses. agents, rules: of the bits and generations (the last GENERATIONS) of its
    policies. kept: whether all of it outlives this process. problem: why nothing does.
    """

    def __init__(
        self,
        bpf: Object | None,
        pins: Pins | None,
        identity: Mapping[str, object],
        lasting: Callable[[str], bool],
        get: Callable[[str], int],
        set_word: Callable[[str, int], None],
    ) -> None:
        self._pins, self._get, self._set = pins, get, set_word
        if bpf is not None:
            self._object = bpf
        self._identity, self._lasting = identity, lasting
        self.inherited = pins is not None and pins.taken is not None
        self.kept, self.problem = False, ""
        self.listened = self.waiting = self.enforcing = 0
        self.told: Told | None = None
        self.agents: tuple[str, ...] = ()
        self.rules: Mapping[int, Sequence[Decided]] = {}
        self._blobs: dict[str, Blob] = {}
        self._misses: Mapping[str, int] = {}  # that a daemon before this one has told
        self._slots: dict[int, int] = {}  # of policies: their maps' descriptors
        self._set_of: Set | None = None
        self._shared: frozenset[str] = frozenset()  # maps that are pinned
        if pins is not None:
            self._begin(pins)

    def _begin(self, pins: Pins) -> None:
        self._set_of = pins.taken or pins.fresh()
        if pins.taken is None:
            self._set("recorder", pins.instance)
            for name, room in BLOBS.items():
                self._blobs[name] = Blob(self._object.array(name, room), room)
            self._blobs["kept"].write(self._identity)
            return
        from agentwatch.policy.compiler import Decided

        self._blobs = {name: pinning.blob(pins.taken, name) for name in BLOBS}
        self.listened = self._get("listened")
        self.enforcing = len(pins.taken.programs(self._get("recorder")))
        kept, told = self._blobs["kept"].read(), self._blobs["told"].read()
        with suppress(KeyError, TypeError, ValueError):  # then it is as if nothing had been told
            self.agents = tuple(map(str, kept["agents"]))
            rows = kept["rules"].items()
            self.rules = {int(n): tuple(Decided(*map(str, r)) for r in of) for n, of in rows}
        with suppress(KeyError, TypeError, ValueError):
            self.told = _told(told)
            self._misses = self.told.misses

    @property
    def in_force(self) -> int:
        """The slot of the policy in force, abi.POLICY_NONE for none."""
        return self._get("in_force")

    @property
    def generation(self) -> int:
        """Of the last policy there was in these maps; 0 for none."""
        return self._get("published") if self.inherited else 0

    @property
    def place(self) -> str:
        """Where pins are, or are to be; "" for nowhere."""
        return str(self._set_of.path) if self._set_of is not None else ""

    @property
    def replaces(self) -> bool:
        """Whether there is anything in force that goes once this daemon has taken over."""
        return self._pins is not None and not self._pins.empty

    @property
    def wrong(self) -> Sequence[tuple[str, str]]:
        """Sets of our own ABI that could not be taken over, and why."""
        return self._pins.wrong if self._pins is not None else ()

    def members(self) -> dict[int, ProcessKey] | None:
        """Of foreign sets: tagged processes, pid -> session. None where one cannot be read."""
        found: dict[int, ProcessKey] = {}
        for one in self._pins.foreign if self._pins is not None else ():
            members = one.members()
            if members is None and one.instances:
                return None
            found |= members or {}
        return found

    # What is left to the next one.

    def policy(self, generation: int, agents: Iterable[str], rules: Sequence[Decided]) -> None:
        """A policy is about to be published: which bits and rules its numbers stand for."""
        if not self._blobs:
            return
        self.agents = tuple(agents)
        older = sorted(set(self.rules) - {generation})[1 - GENERATIONS :]
        self.rules = {number: self.rules[number] for number in older} | {generation: tuple(rules)}
        rows = {number: [_row(one) for one in of] for number, of in self.rules.items()}
        value = {**self._identity, "agents": self.agents}
        blob = self._blobs["kept"]
        # Too many rules to be named: the next daemon says that it does not know which it was.
        _ = blob.write({**value, "rules": rows}) or blob.write({**value, "rules": {}})

    def policy_of(self, slot: int) -> int:
        """The descriptor of an inherited policy; whoever asks closes it. Raises OSError."""
        assert self._set_of is not None
        self._slots[slot] = pinned(self._set_of.slot(slot))
        return self._slots[slot]

    def hold(self, slot: int, fd: int) -> None:
        """A policy is about to have this slot. Raises OSError."""
        self.drop(slot)
        self._slots[slot] = fd
        if self._set_of is not None and (self.kept or self.inherited):
            pin(fd, self._set_of.slot(slot))

    def drop(self, slot: int) -> None:
        """The policy of a slot is gone."""
        self._slots.pop(slot, None)
        if self._set_of is not None and (self.kept or self.inherited):
            self._set_of.slot(slot).unlink(missing_ok=True)

    def tell(self, told: Told) -> None:
        """The journal has these losses."""
        if self._blobs and told != self.told:
            self.told = told
            self._blobs["told"].write(_as_told(told))

    def listen(self, now: int) -> None:
        """All that was recorded before was read. now: ns of boottime."""
        self._set("listened", now)

    # Taking over, and letting go.

    def commit(self) -> HandedOver:
        """From here on this daemon's programs record, and outlive it; those before them are gone.

        Raises KernelError where that cannot be and something else is in force: that stays so. Where
        there is nothing else, `problem` says why nothing outlives this daemon.
        """
        pins, into = self._pins, self._set_of
        if pins is None or into is None:
            return HandedOver()
        try:
            self._pin(into, pins.instance)
        except OSError as error:
            self._undo(into, pins.instance)
            if pins.empty:
                self.problem = f"nothing could be pinned: {error}"
                return HandedOver()
            raise pinning.unusable(error) from None
        self.kept = True
        self._set("recorder", pins.instance)
        return self._succeed(pins, into)

    def _pin(self, into: Set, instance: int) -> None:
        """What is pinned there already stays as it is."""
        for kind in ("links", "programs"):
            (into.path / kind / str(instance)).mkdir(0o700, parents=True, exist_ok=True)
        (into.path / "maps").mkdir(0o700, exist_ok=True)
        shared = pinning.shared(self._object)
        self._shared = frozenset(shared) | self._blobs.keys()
        for name, own in shared.items():
            _keep(self._object.map(own).fd, into.map(name))
        for name, blob in self._blobs.items():
            _keep(blob.array.fd, into.map(name))
        for slot, fd in self._slots.items():
            _keep(fd, into.slot(slot))
        for name in sorted(self._object.attached):
            if self._lasting(name):
                _keep(self._object.program(name), into.program(instance, name))
                _keep(self._object.link(name), into.link(instance, name))

    def _undo(self, into: Set, instance: int) -> None:
        with suppress(OSError):
            if self.inherited:
                into.release(instance)
            else:
                into.remove()

    def _succeed(self, pins: Pins, into: Set) -> HandedOver:
        skipped = unread = 0
        for instance in into.instances:
            if instance != pins.instance:
                misses = into.misses(instance).items()
                skipped += sum(max(n - self._misses.get(name, 0), 0) for name, n in misses)
                into.release(instance)
        for one in pins.foreign:
            unread += one.unread()
            one.remove()
        replaced, pins.foreign = tuple(one.name for one in pins.foreign), []
        return HandedOver(skipped, unread, replaced)

    def link(self, name: str) -> None:
        """A program was attached anew. Raises OSError."""
        if self.kept and self._pins is not None and self._set_of is not None:
            pin(self._object.link(name), self._set_of.link(self._pins.instance, name))

    def regain(self, name: str) -> bool:
        """A program's link is lost to us: whether it was pinned, and is ours again."""
        if not self.kept or self._pins is None or self._set_of is None:
            return False
        return self._object.take_up(name, self._set_of.link(self._pins.instance, name))

    def pin_again(self) -> frozenset[str]:
        """Of what somebody has unpinned since: the programs and maps that are pinned again.

        Raises OSError where that cannot be: then they end with this daemon.
        """
        if not self.kept or self._pins is None or self._set_of is None:
            return frozenset()
        linked = set(self._set_of.programs(self._pins.instance))
        gone = {name for name in self._object.attached - linked if self._lasting(name)}
        gone |= self._shared | {self._set_of.slot(slot).name for slot in self._slots}
        gone -= linked | self._set_of.maps
        if gone:
            self._pin(self._set_of, self._pins.instance)
        return frozenset(gone)

    def unlink(self, name: str) -> None:
        """A program is about to be detached."""
        if self.kept and self._pins is not None and self._set_of is not None:
            self._set_of.link(self._pins.instance, name).unlink(missing_ok=True)

    def release(self) -> None:
        """Nothing outlives this daemon. Raises OSError."""
        if self.kept and self._set_of is not None:
            self.kept = False
            self._set_of.remove()

    def close(self) -> None:
        for blob in self._blobs.values():
            blob.array.close()
        self._blobs = {}


def _keep(fd: int, path: Path) -> None:
    """Pins what is not pinned there. Raises OSError."""
    with suppress(FileExistsError):
        pin(fd, path)


def _row(one: Decided) -> tuple[str, str, str, str]:
    return one.rule, one.action, one.kind, one.agent


def _as_told(told: Told) -> dict[str, Any]:
    counters = {
        name: {str(kind): count for kind, count in value.items()}
        if isinstance(value, Mapping)
        else value
        for name in abi.Counters.__slots__
        for value in [getattr(told.counters, name)]
    }
    return {"counters": counters, "misses": dict(told.misses)}


def _told(raw: Any) -> Told:
    """Raises KeyError, TypeError, ValueError for anything else."""
    counters: Any = {
        name: {int(kind): int(count) for kind, count in value.items()}
        if isinstance(value, dict)
        else int(value)
        for name, value in raw["counters"].items()
    }
    misses = {str(name): int(count) for name, count in raw["misses"].items()}
    return Told(abi.Counters(**counters), misses)
