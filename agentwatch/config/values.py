"""Values of the configuration file: numbers with units, paths, addresses. No key is known here."""

from __future__ import annotations

import grp
import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from agentwatch.rules.diagnostics import Report, did_you_mean, quote
from agentwatch.rules.read import Text
from agentwatch.rules.section import is_shown

SOCKET_PATH_MAX = 107
"""Bytes of a unix socket's path: sun_path of unix(7), less its closing zero."""

BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
TIMES = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}  # in ns
COUNTS = {"": 1}

_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a unit.

    units: name -> how many of the smallest. plain: the unit of a number that is written without.
    form: what to write, for messages. low, high (included) and step: in the smallest unit.
    """

    units: Mapping[str, int]
    plain: str
    form: str
    low: int
    high: int
    step: int = 1

    def read(self, text: Text, report: Report, what: str) -> int | None:
        """In the smallest unit; None when what is wrong has been reported."""
        found = _NUMBER.fullmatch(text.value)
        if found is None or (found[2] or self.plain) not in self.units:
            hint = did_you_mean(found[2], self.units) if found and found[2] else ""
            message = f"{what} cannot be {quote(text.value)}; write {self.form}.{hint}"
            report.error("AW207", text.place, message)
            return None
        if re.match("0[0-9]", found[1]):
            message = (
                f"{text.value} is octal to some YAML readers and decimal to others; "
                f"write {text.value.lstrip('0') or '0'}"
            )
            report.error("AW105", text.place, message)
            return None
        return self._bounded(found, text, report, what)

    def _bounded(self, found: re.Match[str], text: Text, report: Report, what: str) -> int | None:
        value = Fraction(found[1]) * self.units[found[2] or self.plain]
        if value % self.step:
            message = f"{what} must be a multiple of {self.show(self.step)}, not {text.value}"
        elif not self.low <= value <= self.high:
            bounds = f"{self.show(self.low)} to {self.show(self.high)}"
            message = f"{what} must be {bounds}, not {text.value}"
        else:
            return int(value)
        report.error("AW511", text.place, message)
        return None

    def show(self, value: int) -> str:
        """As a person writes it: 64MiB, 10s, 0."""
        unit = max(
            (name for name, size in self.units.items() if value % size == 0),
            key=self.units.__getitem__,
        )
        return f"{value // self.units[unit]}{unit}" if value else "0"


class Address(NamedTuple):
    """Where to listen. host: a name, or an address without brackets. port 0: any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: Text, report: Report, what: str) -> Address | None:
    """HOST:PORT; None when what is wrong has been reported."""
    host, _, port = text.value.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not host:
        wrong = "write HOST:PORT, such as 127.0.0.1:9477, or off"
    elif int(port) > 65535:
        wrong = "ports end at 65535"
    elif ":" in host and not (host.startswith("[") and host.endswith("]")):
        wrong = f'write an IPv6 address in brackets, and all of it in quotes: "[{host}]:{port}"'
    elif not _is_host(host):
        wrong = f"{quote(host)} is no address and no host name"
    else:
        return Address(host.strip("[]"), int(port))
    report.error("AW207", text.place, f"{what} cannot be {quote(text.value)}; {wrong}")
    return None


def _is_host(host: str) -> bool:
    try:
        numbers = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        # What looks like an IPv4 address and is none would be looked up as a name.
        return bool(_HOST.fullmatch(host)) and not re.fullmatch("[0-9.]+", host)
    return host.startswith("[") == (numbers.version == 6)


def metrics(text: Text, report: Report, what: str) -> Address | Path | None:
    """HOST:PORT, or a file whose name ends in .prom; None when what is wrong has been reported."""
    if not text.value.startswith("/"):
        return address(text, report, what)
    path = file_path(text, report, what)
    if path is None or path.suffix == ".prom":
        return path
    message = f"{what}: node_exporter reads files called *.prom, and {quote(text.value)} is none"
    report.error("AW207", text.place, f"{message}; rename it")
    return None


def absolute(text: Text, report: Report, what: str) -> Path | None:
    """A path from / on; None when what is wrong has been reported."""
    if not is_shown(text, report, what):
        return None
    if text.value.startswith("/"):
        return Path(text.value)
    message = f"{what} cannot be the relative path {quote(text.value)}; write it from / on"
    report.error("AW512", text.place, message)
    return None


def file_path(text: Text, report: Report, what: str) -> Path | None:
    """An absolute path that names no directory, whether there is a file yet or not."""
    path = absolute(text, report, what)
    if path is None or not (text.value.endswith("/") or is_directory(path)):
        return path
    message = (
        f"{what} must name a file, and {quote(text.value)} is a directory; add the file's name"
    )
    report.error("AW514", text.place, message)
    return None


def socket_path(text: Text, report: Report, what: str) -> Path | None:
    """An absolute path that fits into a socket's address."""
    path = file_path(text, report, what)
    length = len(os.fsencode(text.value))
    if path is None or length <= SOCKET_PATH_MAX:
        return path
    message = (
        f"{what} has {length} bytes, and a socket's path {SOCKET_PATH_MAX} at most; shorten it"
    )
    report.error("AW512", text.place, message)
    return None


def group(text: Text, report: Report, what: str) -> str | None:
    """The name of a group of this host; None when what is wrong has been reported."""
    try:
        return grp.getgrnam(text.value).gr_name
    except (KeyError, ValueError):
        message = f"{what}: there is no group {quote(text.value)}; make it with groupadd --system"
        report.error("AW514", text.place, f"{message}, or write none")
        return None


def is_directory(path: Path) -> bool | None:
    """None where nothing is there, or nobody tells this user what is."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return None
