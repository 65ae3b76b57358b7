"""Every error agentwatch raises on purpose, as one tree.

    AgentwatchError            exit 1   findings or failure
    ├── UsageError             exit 2   the command line or its input files make no sense
    ├── NotRunningError        exit 3   a daemon was asked and there is none
    ├── PermissionDenied       exit 4   needs privileges this process does not have
    ├── KernelError            exit 1   the kernel or libbpf refused something
    │   └── ProgramRefused     exit 1   ... a BPF program; carries the verifier's log
    ├── RecordError            exit 1   a record does not decode
    ├── JournalError           exit 1   a journal cannot be written, read or trusted
    └── RuleErrors             exit 1   rule files were refused; carries every diagnostic
        └── ConfigErrors       exit 1   ... the configuration file was

Each message is one line that ends with what to do about it; `remedy` holds that part so that
callers can print it on a line of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


class AgentwatchError(Exception):
    """Base of all. `exit_code` is the process's exit code when it reaches the command line."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  try: {self.remedy}" if self.remedy else self.message


class UsageError(AgentwatchError):
    exit_code = 2


class NotRunningError(AgentwatchError):
    exit_code = 3


class PermissionDenied(AgentwatchError):
    exit_code = 4


class KernelError(AgentwatchError):
    pass


class ProgramRefused(KernelError):
    """The verifier or libbpf refused a program. `log` is what they said, tail first kept."""

    def __init__(self, message: str, remedy: str = "", log: str = "") -> None:
        super().__init__(message, remedy)
        self.log = log


class RecordError(AgentwatchError):
    pass


class JournalError(AgentwatchError):
    pass


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding in a rule file or the configuration. line and column count from 1; 0 means all
    of the file.
    """

    file: str
    line: int
    column: int
    severity: str  # error | warning
    code: str  # AW201
    message: str
    source: str = ""  # the text of the line, for the caret


class RuleErrors(AgentwatchError):
    """All errors of all rule files of one load."""

    where = "the rule files"

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        errors = sum(d.severity == "error" for d in diagnostics)
        super().__init__(f"{errors} error{'s' * (errors != 1)} in {self.where}")
        self.diagnostics = diagnostics


class ConfigErrors(RuleErrors):
    """All errors of the configuration file."""

    where = "the configuration"
