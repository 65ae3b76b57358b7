"""docs/packs.md, made from the rule files and the suites: `python -m tests.packs.reference`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentwatch.policy import patterns
from agentwatch.rules import load
from agentwatch.rules.model import Agent, Rule
from tests.packs.incidents import INCIDENTS

HEAD = """\
# The packs that ship

{rules} rules and {agents} agents in {files} files. This page is made from the files themselves, and
a test compares. In a rule file, `instead` says what an agent should do, `tests` show what is meant.
Change a rule on your machine without touching its file ([rules.md](rules.md), Overrides):

```yaml
overrides:
  destruction.force-push: {{action: alert}}
  delegation.container-engine: {{enabled: false}}
```

`kill` ends the process whose event it was; `deny` prevents where a hook can and kills where none
can, unless `else alert` stands beside it. Both are for what cannot be taken back or is hardly ever
meant; everything else is an `alert`, and what is merely notable is `low` or `info`. `agentwatch
rules list` says what each is worth on your machine.

## How good they are

Two suites in [tests/packs](../tests/packs) print recall and precision at the end of every run:

- **must fire**: {incidents} real incidents as events, which needs no root, and with real programs
  and stand-ins under `agentwatch run`, where the sink and the canary are believed.
- **must not fire**: ordinary work, as events and with real git, npm, pip, pytest, make, gcc, cargo
  or go, ssh-agent and gpg: not one finding of severity medium or above.

| suite | recall | precision |
|---|---|---|
| events | {event_recall} | {event_precision} |
| runs | {run_recall} | {run_precision} |

The incidents:

"""
# What the suites printed last; each run prints them anew, and fails where they are below 1.
SCORES = {
    "event_recall": "1.000",
    "event_precision": "1.000",
    "run_recall": "1.000",
    "run_precision": "1.000",
}


def document(packs: Path) -> str:
    """The whole page."""
    ruleset = load.read_rules([packs], patterns).ruleset
    files = sorted({rule.place.file for rule in ruleset.rules}, key=os.path.basename)
    many = {"rules": len(ruleset.rules), "agents": len(ruleset.agents), "files": len(files) + 1}
    text = HEAD.format(incidents=len(INCIDENTS), **many, **SCORES)
    text += "".join(f"- {incident.title}\n" for incident in INCIDENTS)
    text += "".join(_identities(ruleset.agents))
    for file in files:
        rules = [rule for rule in ruleset.rules if rule.place.file == file]
        text += "".join(_section(Path(file), rules))
    return text


def _identities(agents: Sequence[Agent]) -> Iterator[str]:
    yield "\n## identities.yaml\n\n"
    yield "Which programs are agents, and which files are their own state.\n\n"
    yield "| agent | is known by | its own |\n|---|---|---|\n"
    for agent in agents:
        yield f"| {agent.id} | {_codes(agent.exec)} | {_codes(agent.own)} |\n"


def _section(file: Path, rules: Sequence[Rule]) -> Iterator[str]:
    about = file.read_text(encoding="utf-8").split("\nschema:")[0]
    yield f"\n## {file.name}\n\n{' '.join(line.lstrip('# ') for line in about.splitlines())}\n\n"
    yield "| rule | catches | on | does | severity | known false positives |\n"
    yield "|---|---|---|---|---|---|\n"
    for rule in rules:
        cells = (f"`{rule.id}`", rule.title, ", ".join(rule.on), _action(rule), rule.severity)
        yield f"| {' | '.join((*map(_cell, cells), _cell(rule.false_positives)))} |\n"


def _action(rule: Rule) -> str:
    otherwise = rule.action == "deny" and rule.without_hook == "alert"
    return f"{rule.action}, else alert" if otherwise else rule.action


def _codes(globs: Sequence[str]) -> str:
    return ", ".join(f"`{glob}`" for glob in globs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    page = Path(__file__).resolve().parents[2] / "docs" / "packs.md"
    page.write_text(document(load.shipped()), encoding="utf-8")
