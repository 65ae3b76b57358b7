"""`agentwatch rules new`: a rule file to begin with, which passes `rules check` as it is."""

from __future__ import annotations

import re

import click

from agentwatch.errors import UsageError
from agentwatch.rules.model import KINDS
from agentwatch.rules.schema import FILE

# By kind: the match, an event that it hits, and one that it misses.
EXAMPLES = {
    "exec": (
        '{path: "**/git", args|has|all: [push, "--force*"]}',
        "{path: /usr/bin/git, args: [push, --force]}",
        "{path: /usr/bin/git, args: [push]}",
    ),
    "read": (
        '{path: ["~/.netrc", "**/*.pem"]}',
        "{path: /home/dev/.netrc}",
        "{path: /home/dev/netrc.txt}",
    ),
    "change": ('{path: "~/.bashrc"}', "{path: /home/dev/.bashrc}", "{path: /home/dev/notes}"),
    "open": ('{path: "/dev/input/**"}', "{path: /dev/input/event0}", "{path: /dev/null}"),
    "connect": (
        '{addr|cidr: "10.0.0.0/8", port: [22, "5900-5999"]}',
        "{addr: 10.1.2.3, port: 22}",
        "{addr: 10.1.2.3, port: 443}",
    ),
    "listen": ('{port: "1-1023"}', "{port: 80}", "{port: 8080}"),
    "mount": ('{path: "~/**"}', "{path: /home/dev/x}", "{path: /mnt}"),
    "ptrace": ("{peer: other}", "{peer: other}", "{peer: own}"),
    "signal": ("{signal: [STOP, KILL], peer: other}", "{signal: STOP, peer: other}", "{peer: own}"),
}

_TEMPLATE = """\
# yaml-language-server: $schema=./{file}
# For an editor that completes: agentwatch rules schema > {file}
#
# agentwatch rules check FILE     errors with line and column, and the tests below
# agentwatch rules fields {on:<8}what else can be asked of this kind of event
schema: agentwatch/v1
rules:
  - id: {id}
    title: What this is about, in a few words
    on: {on}                  # {others}
    # Every key must hold; of a list, one value. A glob covers the whole value: * stays inside one
    # part of a path (one argument, one label of a name), ** is any number of parts, ~ every home.
    match: {match}
    # Exceptions have names; any that holds lets the event pass this rule.
    # unless:
    #   mine: {{process.exe: /usr/local/bin/mine}}
    action: alert               # or deny, kill; allow makes holes in `defaults:`
    severity: medium            # info, low, medium, high, critical
    because: One sentence for the person, or the agent, that meets this rule.
    instead: What to do instead.
    false_positives: When it is right to do this all the same.
    tags: [local]
    tests:                      # fields that are left out match nothing
      - hit: {hit}
      - miss: {miss}
"""


@click.command()
@click.argument("identifier", metavar="[ID]", default="local.example")
@click.option("--on", type=click.Choice(KINDS), default="read", help="The kind of event.")
def new(identifier: str, on: str) -> None:
    """Print a commented rule file to begin with: rules new my.rule --on exec > my.yaml"""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", identifier):
        raise UsageError(f"{identifier!r} is no id", "use a-z, 0-9, dots, dashes and underscores")
    match, hit, miss = EXAMPLES[on]
    others = ", ".join(kind for kind in KINDS if kind != on)
    text = _TEMPLATE.format(
        file=FILE, id=identifier, on=on, others=f"or {others}", match=match, hit=hit, miss=miss
    )
    click.echo(text, nl=False)
