"""Whether this kernel skips runs of tracing programs, found without loading all of the probes."""

from __future__ import annotations

import os
import threading

from agentwatch import abi
from agentwatch.errors import AgentwatchError
from agentwatch.kernel.libbpf import Object
from agentwatch.kernel.policies import Policies
from agentwatch.kernel.probes import OBJECT

_ROOM = 1 << 16  # bytes, of what is not used here
_NEEDED = frozenset({"find_symbols", "process_fork"})


def skips() -> bool:
    """Whether it preempts them, and skips what others run meanwhile: looked at from inside one that
    is attached for a moment. False, too, where nothing can be loaded, as without root.
    """
    if os.geteuid() != 0 or not OBJECT.exists():
        return False
    try:
        bpf = Object(OBJECT)
    except AgentwatchError:
        return False
    try:
        return _looked(bpf)
    except (AgentwatchError, OSError):
        return False
    finally:
        bpf.close()


def _looked(bpf: Object) -> bool:
    for ring in ("activity", "lifecycle"):
        bpf.resize(ring, _ROOM)
    Policies.prepare(bpf, _ROOM)
    bpf.only(_NEEDED)
    bpf.load()
    at = next(field.offset for field in abi.CONTROL.fields if field.name == "preemption")
    with bpf.memory(".data") as control:
        bpf.run("find_symbols")
        bpf.attach("process_fork")
        thread = threading.Thread(target=int, name="fork")
        thread.start()
        thread.join()
        return int.from_bytes(control[at : at + 4], "little") == abi.PREEMPTION_SOME
