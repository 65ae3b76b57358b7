"""Tries denied things until it is told to stop, then says what became of them.

usage: trying.py DIRECTORY PORT PAUSE. DIRECTORY has `key` and `canary`; `stop` there ends it,
`tried` grows by a byte with each round; PAUSE s are between two. Each try is a process of its own:
on the signal tier it dies of it. Told on one line: by kind, tries, and how many were let through,
as the program itself has seen it.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

place, port, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
KINDS = ("open", "exec", "connect")
tries, through = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)


def try_open() -> None:
    try:
        fd = os.open(place / "key", os.O_RDONLY)
    except PermissionError:
        os._exit(1)
    os._exit(100 if os.read(fd, 1) else 1)


def try_exec() -> None:
    try:
        os.execv(place / "canary", [str(place / "canary")])
    except PermissionError:
        os._exit(1)


def try_connect() -> None:
    with socket.socket() as made:
        try:
            made.connect(("127.0.0.1", port))
        except PermissionError:
            os._exit(1)
        except OSError:
            os._exit(2)
    os._exit(100)


while not (place / "stop").exists():
    for kind, attempt in zip(KINDS, (try_open, try_exec, try_connect), strict=True):
        pid = os.fork()
        if not pid:
            attempt()
            os._exit(3)
        _, status = os.waitpid(pid, 0)
        tries[kind] += 1
        through[kind] += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 1
    with open(place / "tried", "a") as file:
        file.write(".")
    time.sleep(pause)
print(json.dumps({"tries": tries, "through": through}), flush=True)
