"""Who did it: processes, their images, their parents, their session."""

from __future__ import annotations

from dataclasses import dataclass

from agentwatch.events import ProcessKey


@dataclass(frozen=True, slots=True)
class Image:
    """What a process runs since its last exec. identity: the agent whose identity it is, or None."""

    exe: str
    script: str | None = None
    argv: tuple[str, ...] = ()
    cwd: str = ""
    uid: int = 0
    identity: str | None = None

    @property
    def args(self) -> tuple[str, ...]:
        """argv without argv[0], which a program chooses freely."""
        return self.argv[1:]


@dataclass(frozen=True, slots=True)
class Actor:
    """What rules may ask about whoever made a call, at the time of the call.

    image: the program that makes the call; for an exec, the one that calls execve. ancestors:
    images of the parent, its parent, ... nearest first, 8 at most. agents: every agent whose
    rules apply, the session's own first. project: $project, None when unset.
    """

    process: ProcessKey
    session: ProcessKey
    agents: tuple[str, ...]
    image: Image | None = None
    ancestors: tuple[Image, ...] = ()
    project: str | None = None

    @property
    def role(self) -> str:
        """agent: the image is the identity; child: something the agent started."""
        return "agent" if self.image is not None and self.image.identity else "child"
