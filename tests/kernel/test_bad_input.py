"""Bad input and a host that lacks something: a clear message, a remedy, the right exit code."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agentwatch import abi
from agentwatch.events import Open
from agentwatch.sinks.frames import Records, Verdict
from agentwatch.sinks.reader import read
from agentwatch.sinks.verify import verify
from tests.kernel.launching import Launcher, Outcome, python

pytestmark = pytest.mark.root

PRIVATE = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]


@pytest.fixture
def launch(agentwatch: Path, place: Path) -> Launcher:
    """Runs a command under small rules of the test's own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SUDO_")}
    return Launcher(agentwatch, place, environment=environment)


def within(launch: Launcher, script: str) -> Launcher:
    """The launcher, in a mount namespace of its own which the shell script prepares."""
    launch.prefix = [*PRIVATE, f'{script}\nexec "$@"', "sh"]
    return launch


def refused(launch: Launcher, code: int, *options: str) -> str:
    """Runs a command that must not be run; what was said on stderr, as one that is understood."""
    ran = launch.place / "ran"
    outcome = launch("touch", str(ran), options=options)
    assert outcome.code == code, outcome.err
    assert not ran.exists()
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    return outcome.err


# Rules --------------------------------------------------------------------------------------------

HEAD = "schema: agentwatch/v1\n"
ONE = "rules:\n  - {id: a.b, title: T, on: read, action: kill, because: B., match: {path: /x}%s}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "rules: [\n", r"r.yaml:\d+:\d+: error\[AW104\]"),
        (HEAD + "rules: 7\n", r"r.yaml:2:8: error\[AW202\]"),
        (HEAD + ONE.replace("path:", "pth:") % "", r'AW201\].*"pth".*Did you mean "path"'),
        (HEAD + ONE % ", tests: [{miss: {path: /x}}]", r"error\[AW401\]"),
    ],
    ids=["broken", "type", "name", "trial"],
)
def test_rules_that_are_wrong_are_shown_where_they_are(
    launch: Launcher, text: str, says: str
) -> None:
    """File, line, column and what is wrong; exit 1; CMD is not run."""
    (launch.place / "r.yaml").write_text(text)
    said = refused(launch, 1, f"--rules={launch.place}/r.yaml")
    assert re.search(says, said), said
    assert re.search(r"agentwatch: \d+ errors? in the rule files", said)


def test_all_errors_of_all_files_are_told_at_once(launch: Launcher) -> None:
    """Not one after the other, run by run."""
    for name in ("one", "two"):
        (launch.place / f"{name}.yaml").write_text(HEAD + ONE.replace("path", name) % "")
    said = refused(launch, 1, *(f"--rules={launch.place}/{n}.yaml" for n in ("one", "two")))
    assert "one.yaml:3" in said
    assert "two.yaml:3" in said


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "No such file"), ("bin", "holds no rule files")]
)
def test_a_rules_directory_that_is_missing_or_empty(launch: Launcher, name: str, says: str) -> None:
    """Never an empty ruleset that lets everything pass."""
    said = refused(launch, 1, f"--rules={launch.place}/{name}")
    assert says in said
    assert f"{launch.place}/{name}" in said


def test_a_rules_directory_that_may_not_be_read(launch: Launcher) -> None:
    """Through sudo root may read everything; without the right to override modes it is told."""
    closed = launch.place / "closed"
    closed.mkdir(0o000)
    os.chown(closed, 65534, 65534)
    launch.prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    said = refused(launch, 1, f"--rules={closed}")
    assert "cannot read it: Permission denied" in said


# The command line ---------------------------------------------------------------------------------


def test_a_metrics_host_that_is_none(launch: Launcher) -> None:
    """A name that no resolver knows, found out when it is listened on."""
    said = refused(launch, 2, "--metrics=no..such..host:9")
    assert "metrics cannot listen on no..such..host:9" in said
    assert "  try: " in said


def test_a_metrics_port_in_use(launch: Launcher) -> None:
    """Somebody else listens there: named, with what to do, and nothing is watched half."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(launch, 1, f"--metrics=127.0.0.1:{port}")
    assert f"metrics cannot listen on 127.0.0.1:{port}: Address already in use\n  try: " in said


# The kernel ---------------------------------------------------------------------------------------


def test_without_btf_the_message_says_so(launch: Launcher) -> None:
    """Not only what libbpf makes of it: what is missing, for either loader."""
    within(launch, "mount -t tmpfs tmpfs /sys/kernel/btf; export BCC_KERNEL_SOURCE=/nonexistent")
    core = refused(launch, 1, "--loader", "core")
    assert "libbpf: failed to find valid kernel BTF" in core  # its own words, before ours
    for said in (core, refused(launch, 1)):
        assert "this kernel lacks BTF" in said
        assert "the headers of this kernel are missing" in said
        assert "  try: apt install linux-headers-" in said


def test_doctor_says_that_btf_is_missing(launch: Launcher, agentwatch: Path) -> None:
    """One line with its remedy; and what the other loader lacks, which leaves none: exit 1."""
    script = 'mount -t tmpfs tmpfs /sys/kernel/btf; BCC_KERNEL_SOURCE=/nonexistent exec "$@"'
    done = subprocess.run(
        [*PRIVATE, script, "sh", agentwatch, "doctor"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.search(r"without +btf .*\n +try: boot a kernel", done.stdout)
    assert re.search(r"MISSING +loader .*\n +try: apt install linux-headers-", done.stdout)


def instead(launch: Launcher, bpf_object: Path, content: bytes) -> Launcher:
    """The launcher, with other probes in the place of the real ones in its own namespace."""
    other = launch.place / "other.bpf.o"
    other.write_bytes(content)
    return within(launch, f"mount --bind {other} {bpf_object}")


def test_an_object_that_is_no_object(launch: Launcher, bpf_object: Path) -> None:
    """Cut short, as by a full disk."""
    instead(launch, bpf_object, bpf_object.read_bytes()[:1000])
    said = refused(launch, 1)
    assert "agentwatch.bpf.o cannot be opened" in said
    assert "  try: " in said


def test_a_program_the_kernel_refuses_shows_the_verifiers_words(
    launch: Launcher, bpf_object: Path, tmp_path: Path
) -> None:
    """The log first, then what was refused, then what to do."""
    source = tmp_path / "refused.bpf.c"
    source.write_text(REFUSED)
    broken = tmp_path / "refused.bpf.o"
    build = ["clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu"]
    subprocess.run([*build, "-c", source, "-o", broken], check=True, timeout=60)
    instead(launch, bpf_object, broken.read_bytes())
    said = refused(launch, 1)
    assert "invalid mem access" in said
    assert "agentwatch: the kernel refused the probes" in said
    assert said.index("invalid mem access") < said.index("agentwatch: the kernel refused")
    assert "  try: " in said


# The maps that are sized before loading, and a program that reads by an unchecked pointer.
REFUSED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } activity SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } lifecycle SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} mirror SEC(".maps");
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 8);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__array(values, struct inner);
} policies SEC(".maps");
const volatile __u64 policy_mask SEC(".rodata.policy") = 7;
SEC("raw_tracepoint/sched_process_exec")
int process_exec(void *ctx)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&mirror, &key);

	return *value;
}
char LICENSE[] SEC("license") = "GPL";
"""


def test_an_object_of_another_abi(launch: Launcher, bpf_object: Path) -> None:
    """Records of another layout are never read: it is refused, with both numbers."""
    found = bpf_object.read_bytes()
    at = data_section(found)
    assert int.from_bytes(found[at : at + 4], "little") == abi.ABI
    other = found[:at] + (77).to_bytes(4, "little") + found[at + 4 :]
    instead(launch, bpf_object, other)
    said = refused(launch, 1)
    assert f"the probes speak ABI 77, this agentwatch {abi.ABI}\n  try: make" in said


def data_section(elf: bytes) -> int:
    """Where .data lies in a 64-bit ELF object (elf(5)): it begins with aw_control, and that with
    abi.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(elf[at : at + size], "little")

    table, size, count, names = number(40, 8), number(58, 2), number(60, 2), number(62, 2)
    strings = number(table + names * size + 24, 8)
    for header in range(table, table + count * size, size):
        name = strings + number(header, 4)
        if elf[name : name + 6] == b".data\0":
            return number(header + 24, 8)
    raise AssertionError("no .data")


def test_an_object_that_was_not_built(launch: Launcher, bpf_object: Path) -> None:
    """An empty checkout: `make` is the remedy."""
    within(launch, f"mount -t tmpfs tmpfs {bpf_object.parent}")
    said = refused(launch, 1, f"--rules={launch.place}/rules.yaml")
    assert "agentwatch.bpf.o is missing" in said or "redact" in said
    assert "  try: make" in said


# The journal --------------------------------------------------------------------------------------


def test_a_journal_directory_that_is_a_file(launch: Launcher) -> None:
    """Named, with what to do."""
    launch.journal.write_text("")
    said = refused(launch, 1)
    assert f"the journal in {launch.journal} cannot be written: Not a directory\n  try: " in said


def test_a_journal_directory_that_cannot_be_written(launch: Launcher) -> None:
    """A file system that is mounted read-only."""
    launch.journal.mkdir(0o750)
    within(launch, f"mount -t tmpfs -o ro tmpfs {launch.journal}")
    said = refused(launch, 1)
    assert "cannot be written: Read-only file system\n  try: " in said


def test_a_journal_directory_of_somebody_else(launch: Launcher) -> None:
    """Whoever owns it could replace the journal."""
    launch.journal.mkdir(0o750)
    os.chown(launch.journal, 65534, 65534)
    said = refused(launch, 1)
    assert "belongs to uid 65534, who could replace the journal\n  try: " in said


def test_findings_that_cannot_be_written(launch: Launcher) -> None:
    """Found out before CMD is run."""
    said = refused(launch, 1, f"--jsonl={launch.place}/no/where.jsonl")
    assert "there is no directory for" in said
    assert "  try: mkdir -p" in said


FILLING = """
import os, sys, time
def fill():
    for number in range(3000):
        try:
            os.open("/no/such/directory/with/a/rather/long/name/%05d" % number, os.O_RDONLY)
        except FileNotFoundError:
            pass
    time.sleep(1.5)
"""


def small(launch: Launcher) -> str:
    """Shell: the journal lies on a disk of 256 KiB."""
    launch.journal.mkdir(0o750)
    return f"mount -t tmpfs -o size=256k,mode=750 tmpfs {launch.journal}"


def test_a_full_disk_stops_neither_the_command_nor_the_rules(launch: Launcher) -> None:
    """It is said once, rules are enforced all the same, and CMD keeps its exit code."""
    full = launch.place / "full"
    full.mkdir()
    fill = f"mount -t tmpfs -o size=8k tmpfs {full}; : > {full}/findings.jsonl; set +e; "
    fill += f"dd if=/dev/zero of={full}/rest bs=1k 2>/dev/null; set -e"
    within(launch, f"{small(launch)}; {fill}")
    code = FILLING + "fill()\nfd = os.open(sys.argv[1], os.O_RDONLY)\ntime.sleep(10)"
    jsonl = f"--jsonl={full}/findings.jsonl"
    outcome = launch(*python(code), f"{launch.place}/key", options=[jsonl])
    assert outcome.code == 137, outcome.err
    assert len(re.findall("NOTICE .*no room for the journal .*: free some", outcome.err)) == 1
    assert "agentwatch: the journal's end is missing: no room" in outcome.err
    assert re.search(r"KILL +read .*/key", outcome.err)
    assert re.search(r"findings +\d+ not written", outcome.err)
    assert "Traceback" not in outcome.err


ROOM_AGAIN = """
filler = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, bytes(4096))
except OSError:
    pass
fill()
os.unlink(sys.argv[1])
os.close(filler)
time.sleep(1.2)
"""


def test_a_disk_that_has_room_again_gets_what_waited(launch: Launcher) -> None:
    """Nothing is lost while there is memory to keep it, and the chain is whole."""
    keep = launch.place / "keep"
    mount = small(launch).replace("256k", "2m")
    script = f'{mount}; set +e; "$@"; code=$?; cp -r {launch.journal} {keep}; exit $code'
    launch.prefix = [*PRIVATE, script, "sh"]
    outcome = launch(*python(FILLING + ROOM_AGAIN), f"{launch.journal}/filler")
    assert outcome.code == 0, outcome.err
    assert "no room for the journal" in outcome.err
    assert "is missing" not in outcome.err
    assert all(report.intact and report.closed for report in verify(keep))
    opens = [entry.event for entry in read(keep) if isinstance(entry.event, Open)]
    asked = [event.asked for event in opens if event.asked.startswith("/no/such/directory")]
    assert (len(asked), len(set(asked))) == (3000, 3000)


@pytest.fixture(scope="module")
def whole(agentwatch: Path) -> Iterator[Path]:
    """The journal of a real run, to be copied."""
    with tempfile.TemporaryDirectory(prefix="agentwatch-test-") as made:
        launch = Launcher(agentwatch, Path(made).resolve())
        assert launch("cat", f"{made}/watched").code == 0
        yield launch.journal


@pytest.fixture
def segment(whole: Path, launch: Launcher) -> Path:
    """The only segment of a journal of the test's own."""
    shutil.copytree(whole, launch.journal)
    (found,) = launch.journal.glob("*/*.journal")
    return found


def ask(launch: Launcher, *verb: str) -> Outcome:
    line = [str(launch.agentwatch), *verb, f"--journal={launch.journal}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=20)
    return Outcome(done.returncode, done.stdout, done.stderr, launch.journal)


VERBS = [("events",), ("journal", "verify"), ("journal", "export")]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_journal_that_was_cut_is_read_up_to_there(
    launch: Launcher, segment: Path, verb: Sequence[str]
) -> None:
    """Power was lost in the middle of a write: exit 1, and everything before the cut is shown."""
    content = segment.read_bytes()
    segment.write_bytes(content[:-20])
    outcome = ask(launch, *verb)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "agentwatch: " in outcome.err
    assert "  try: " in outcome.err
    assert "cat" in outcome.out or "torn" in outcome.out.lower()


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_journal_that_was_edited_is_found_out(
    launch: Launcher, segment: Path, verb: Sequence[str]
) -> None:
    """One byte of a frame in the middle: exit 1, and the rest can still be read."""
    content = bytearray(segment.read_bytes())
    content[content.index(b"test.watched")] ^= 0x20
    segment.write_bytes(content)
    outcome = ask(launch, *verb)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert re.search(r"agentwatch: .*00000001.journal", outcome.err)
    assert "  try: " in outcome.err


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_journal_that_is_something_else(
    launch: Launcher, segment: Path, verb: Sequence[str]
) -> None:
    """A file of noise under a segment's name: exit 1 and no traceback."""
    segment.write_bytes(os.urandom(5000))
    outcome = ask(launch, *verb)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "agentwatch: " in outcome.err


@pytest.mark.usefixtures("segment")
def test_what_was_told_is_in_the_journal_that_was_not_damaged(launch: Launcher) -> None:
    """The same run, untouched: every verb is content."""
    assert [ask(launch, *verb).code for verb in VERBS] == [0, 0, 0]
    kinds = {type(entry.frame) for entry in read(launch.journal)}
    assert Verdict in kinds
    assert Records not in kinds
