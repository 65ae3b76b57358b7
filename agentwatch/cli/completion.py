"""`agentwatch completion`: what a shell reads to complete our commands; the package installs it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion of a shell, for example: eval "$(agentwatch completion bash)"."""
    made = get_completion_class(shell)
    assert made is not None  # SHELLS are those that click has
    root = click.get_current_context().find_root().command
    complete = made(root, {}, "agentwatch", "_AGENTWATCH_COMPLETE")
    # Not source(), which starts a bash to ask for its version.
    click.echo(complete.source_template % complete.source_vars(), nl=False)
