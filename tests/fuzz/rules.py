"""The loader under atheris: nothing but RuleErrors comes out, whatever goes in.

    pip install atheris
    python tests/fuzz/rules.py -max_total_time=600 -timeout=20 -rss_limit_mb=2048 [CORPUS]

Half of the inputs are files as they are, half are made of pieces of the language. A finding is an
exception (atheris prints it with the input), a time-out or memory over the limit.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["agentwatch", "ruamel"]):
    from agentwatch import admission
    from agentwatch.engine import Engine
    from agentwatch.errors import AgentwatchError
    from tests.fuzz.lines import made

FILE = Path(tempfile.mkdtemp(prefix="agentwatch-fuzz-", dir="/dev/shm")) / "r.yaml"


def one_input(data: bytes) -> None:
    """Loads it as a rule file and, where it is let in, makes an engine of it."""
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        text = provider.ConsumeBytes(len(data))
    else:
        file = made(lambda below: provider.ConsumeIntInRange(0, below - 1) if below > 1 else 0)
        text = file.encode("utf-8", "surrogatepass")
    FILE.write_bytes(text)
    try:
        Engine(admission.admit([FILE], homes=("/root", "/home/dev")).ruleset)
    except AgentwatchError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
