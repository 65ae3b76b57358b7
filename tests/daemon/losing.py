"""A daemon that loses what it holds: usage: losing.py PROGRAM ARGUMENTS...

Runs a Python program that on SIGUSR1 closes the descriptors whose numbers are in the file LOSES:
what only somebody can do who may act as the daemon itself.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path


def lose(number: int, frame: object) -> None:
    for fd in Path(os.environ["LOSES"]).read_text().split():
        os.close(int(fd))


signal.signal(signal.SIGUSR1, lose)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
