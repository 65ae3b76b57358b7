"""usage: python packaging/man DIRECTORY SECONDS VERSION

Writes the manual pages: one for each command of the command line, from the text of its own --help,
so that there is one source. SECONDS since the epoch are the pages' date.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from agentwatch.cli import COMMANDS, agentwatch

FILES = """\
.TP
\\fI/etc/agentwatch/agentwatch.yaml\\fR
How the daemon runs; every key is explained in it.
.TP
\\fI/etc/agentwatch/rules.d\\fR
Local rules and overrides.
.TP
\\fI/usr/share/agentwatch/rules\\fR
The rules that ship.
.TP
\\fI/var/log/agentwatch\\fR
The journal.
.TP
\\fI/run/agentwatch/control.sock\\fR
Where the daemon is asked; AGENTWATCH_SOCKET names another.
"""
EXIT = """\
0 ok, 1 findings or failure, 2 usage, 3 no daemon runs, 4 not permitted; \\fBrun\\fR: CMD's own."""
ADMIN = {"daemon": "8"}
"""Commands whose page is in another section than 1."""


def page(name: str, command: click.Command, date: str, version: str) -> str:
    """One page. name: as it is typed, "agentwatch rules"."""
    title = name.replace(" ", "-")
    section = ADMIN.get(name.rpartition(" ")[2], "1")
    parts = [
        f'.TH "{title.upper()}" "{section}" "{date}" "agentwatch {version}"',
        ".SH NAME",
        f"{plain(title)} \\- {plain(summary(command))}",
        ".SH SYNOPSIS",
        synopsis(name, command),
        ".SH DESCRIPTION",
        prose(command.help or ""),
        *options(command),
    ]
    if isinstance(command, click.Group):
        parts += [".SH COMMANDS", *commands(name, command)]
    if name == "agentwatch":
        parts += [".SH FILES", FILES.rstrip()]
    parts += [".SH EXIT STATUS", EXIT, ".SH SEE ALSO", see_also(title)]
    return "\n".join(parts) + "\n"


def commands(name: str, group: click.Group) -> Iterator[str]:
    """Those of the top have pages of their own; those below them are explained here."""
    context = click.Context(group)
    for one in group.list_commands(context):
        found = group.get_command(context, one)
        assert found is not None
        if name == "agentwatch":
            yield f".TP\n\\fBagentwatch\\-{plain(one)}\\fR({ADMIN.get(one, '1')})"
            yield plain(summary(found))
        else:
            yield f".SS {plain(one)}"
            yield synopsis(f"{name} {one}", found)
            yield ".PP\n" + prose(found.help or "")
            yield from options(found, ".PP")


def synopsis(name: str, command: click.Command) -> str:
    """.B name [OPTIONS] ARGS"""
    words = " ".join(command.collect_usage_pieces(click.Context(command)))
    return f"\\fB{plain(name)}\\fR {plain(words)}"


def options(command: click.Command, head: str = ".SH OPTIONS") -> Iterator[str]:
    """As --help shows them."""
    context = click.Context(command)
    records = [
        one.get_help_record(context)
        for one in command.get_params(context)
        if isinstance(one, click.Option)
    ]
    shown = [record for record in records if record]
    if shown:
        yield head
    for flag, text in shown:
        yield f".TP\n\\fB{plain(flag)}\\fR\n{plain(text)}"


def summary(command: click.Command) -> str:
    """The first sentence."""
    first = (command.help or "").strip().split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


def prose(text: str) -> str:
    """Paragraphs; a block that click is told not to wrap is an example."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if "\b" in block:
            lines = [plain(line) for line in block.replace("\b", "").strip("\n").splitlines()]
            parts.append(".nf\n" + "\n".join(lines) + "\n.fi")
        else:
            parts.append(plain(" ".join(block.split())))
    return "\n.PP\n".join(parts)


def plain(text: str) -> str:
    """Text as roff takes it: no line of it is a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^(?=[.'])", r"\\&", text)


def see_also(title: str) -> str:
    pages = ["agentwatch", *(f"agentwatch-{name}" for name in COMMANDS)]
    return ",\n".join(
        f".BR {plain(one)} ({ADMIN.get(one.partition('-')[2], '1')})"
        for one in pages
        if one != title
    )


def main(directory: Path, seconds: int, version: str) -> None:
    """Write them all."""
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    directory.mkdir(parents=True, exist_ok=True)
    context = click.Context(agentwatch)
    pages = [("agentwatch", agentwatch)]
    for name in COMMANDS:
        found = agentwatch.get_command(context, name)
        assert found is not None
        pages.append((f"agentwatch {name}", found))
    for name, command in pages:
        section = ADMIN.get(name.rpartition(" ")[2], "1")
        path = directory / f"{name.replace(' ', '-')}.{section}"
        path.write_text(page(name, command, date, version))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
