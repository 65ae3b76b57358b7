"""A program that asks the daemon: says its pid, then answers each request on its standard input.

usage: asking.py SOCKET; a line is [verb, {args}], an answer [value, error, message, remedy].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from agentwatch.control.client import Client
from agentwatch.errors import AgentwatchError

print(os.getpid(), flush=True)
for line in sys.stdin:
    verb, args = json.loads(line)
    try:
        with Client.connect(Path(sys.argv[1])) as client:
            if verb == "events":
                client.stream(verb, **args)
                value = {}
            else:
                value = client.request(verb, **args)
        print(json.dumps([value, "", "", ""]), flush=True)
    except AgentwatchError as error:
        answer = [{}, type(error).__name__, error.message, error.remedy]
        print(json.dumps(answer), flush=True)
