"""The metrics there are: what each is called, what it means, and what to alert on.

The page that is served and docs/metrics.md both come from this table. Labels come from closed sets,
never from what an agent chose: `rule` is bounded by the rules that are or were loaded, `agent` by
their identities and `unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "agentwatch_"
_SUFFIXES = {"counter": "_total", "info": "_info"}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. name: without prefix and suffix. type: counter | gauge | histogram | info.

    text: its help. alert: what to do about it, in Markdown; "" for nothing by itself.
    """

    name: str
    type: str
    labels: tuple[str, ...]
    text: str
    alert: str = ""

    @property
    def full_name(self) -> str:
        """As Prometheus stores it; of a histogram without _bucket, _sum and _count."""
        return PREFIX + self.name + _SUFFIXES.get(self.type, "")


FAMILIES = (
    # Agents.
    Family(
        "sessions",
        "gauge",
        ("agent", "state"),
        "Sessions of agents; state: running or frozen.",
        '`{state="frozen"} > 0`: one was stopped, by the breaker, by on_loss or by a person; '
        "look, then `agentwatch agents thaw` or `kill`",
    ),
    Family("sessions_begun", "counter", ("agent",), "Sessions that began."),
    Family("tagged_processes", "gauge", ("agent",), "Processes that carry an agent's tag."),
    # What happened, and what was done.
    Family("events", "counter", ("kind",), "Records of tagged processes written by the probes."),
    Family(
        "events_lost",
        "counter",
        ("stage",),
        "Records that never reached the journal.",
        "any increase: what is lost is not judged; the journal has a gap that says when",
    ),
    Family(
        "unresolved",
        "counter",
        ("kind",),
        "Records with a name or an address that could not be read whole.",
        "a sudden rise: somebody uses names that are hard to read",
    ),
    Family(
        "decisions",
        "counter",
        ("rule", "action", "level"),
        "Verdicts.",
        '`{action=~"deny|kill"}` increases: an agent did what it must not',
    ),
    Family(
        "kill_failures",
        "counter",
        ("reason",),
        "Kills that did not stop what they were meant to stop.",
        '`{reason="failed"}` increases: a process lives on. `too late`: it had ended by itself',
    ),
    Family(
        "event_delay_seconds",
        "histogram",
        (),
        "Time from the probe to the journal.",
        "a 99th percentile above 0.5 s: kills by the engine come late",
    ),
    # Rules.
    Family("rules_loaded", "gauge", ("level",), "Rules by what they are worth on this host."),
    Family(
        "rules_paused",
        "gauge",
        (),
        "Rules that do not act until a time that somebody said.",
        "above 0 for longer than your people need",
    ),
    Family(
        "enforcing",
        "gauge",
        (),
        "1 when rules are carried out, 0 when they are only told of (mode: observe).",
        "0 on a host that is to enforce",
    ),
    Family("policy_generation", "gauge", (), "Number of the policy in force."),
    Family("policy_compile_seconds", "gauge", (), "Time it took to load it."),
    Family(
        "policy_in_kernel",
        "gauge",
        (),
        "1 when the kernel decides by the policy, 0 when the engine does alone.",
        "0: nothing is killed before its effect; `agentwatch status` says why",
    ),
    Family(
        "policy_failures",
        "counter",
        (),
        "Policies that the kernel could not be given.",
        "any increase",
    ),
    Family(
        "policy_no_room",
        "counter",
        ("what",),
        "What the policy in the kernel had no room for; what: a program's `mark`, a session's "
        "`project`, a file system's `mount`, a `file` that rules name, "
        "memory for the `judging` of a call.",
        '`{what="judging"}` increases: calls were refused unjudged; '
        "others: the engine decides instead, or rules apply without their exceptions",
    ),
    Family(
        "policy_unsettled",
        "counter",
        (),
        "Policies that came into force before all that ran was known to them.",
        "any increase: for a while exceptions by program did not hold for what had just begun",
    ),
    Family(
        "policy_disagreements",
        "counter",
        (),
        "Events that the kernel acted on and the engine, by the same policy, would not have.",
        "any increase: somebody may have been killed for nothing; report it",
    ),
    Family(
        "policy_bytes",
        "gauge",
        (),
        "Size of the policy in the kernel, which sets aside room for the largest: 16 MiB.",
    ),
    Family("policy_states", "gauge", ("automaton",), "States of each of its automata."),
    Family("reloads", "counter", ("outcome",), "Reloads; outcome: ok, or refused."),
    Family(
        "last_reload_successful",
        "gauge",
        (),
        "1 when the last configuration and rules were taken, 0 when they were refused.",
        "0: what is on disk is not what is in force; `agentwatch status` says why",
    ),
    Family(
        "last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "When a policy was loaded last, since the epoch.",
    ),
    # Probes.
    Family(
        "hook_attached",
        "gauge",
        ("hook",),
        "1 when the probe is attached, else 0.",
        "0: what this probe sees is not seen",
    ),
    Family("map_entries", "gauge", ("map",), "Entries in a BPF map; of a ring, bytes."),
    Family(
        "map_capacity",
        "gauge",
        ("map",),
        "Entries that a BPF map has room for; of a ring, bytes.",
        "`map_entries / map_capacity > 0.8` for mirror and sessions: no room for more agents soon; "
        "for marks, projects and mounts: see `policy_no_room`",
    ),
    Family(
        "program_runs",
        "counter",
        ("program",),
        "Runs of a BPF program (only while kernel.bpf_stats_enabled).",
    ),
    Family(
        "program_run_seconds",
        "counter",
        ("program",),
        "Time spent in a BPF program (only while kernel.bpf_stats_enabled).",
    ),
    # The journal.
    Family("journal_bytes", "counter", (), "Bytes written to the journal."),
    Family("journal_frames", "counter", (), "Frames chained."),
    Family("journal_segments", "gauge", (), "Segments begun by this writer."),
    Family(
        "journal_failures",
        "counter",
        (),
        "Writes and syncs of the journal that failed.",
        "any increase: the disk is full or broken",
    ),
    Family(
        "journal_waiting_bytes",
        "gauge",
        (),
        "Bytes that are not written yet.",
        "above 1 MiB: it cannot be written; informational records give way soon",
    ),
    Family(
        "journal_lost",
        "counter",
        (),
        "Records that gave way while the journal could not be written.",
        "any increase",
    ),
    Family(
        "journal_head",
        "info",
        ("chain", "sequence", "hash"),
        "Where the chain stands: keep it, and a cut journal is found out.",
        "kept elsewhere, it proves that nothing was cut off: see [journal.md](journal.md)",
    ),
    # Who asks.
    Family(
        "control_connections",
        "gauge",
        (),
        "Connections to the control socket.",
        "near 256: further ones are turned away, but for some of root's",
    ),
    Family("control_subscribers", "gauge", (), "Of them, those that follow events."),
    Family(
        "control_dropped_frames",
        "counter",
        (),
        "Frames that slow subscribers were not sent; each was told how many.",
    ),
    Family(
        "findings_lost",
        "counter",
        ("to",),
        "Findings that were not handed on; to: jsonl (the file for shippers) or journald.",
        '`{to="jsonl"}` increases: the file cannot be written; the journal has what shippers miss',
    ),
    # agentwatch itself.
    Family(
        "loop_turn_seconds",
        "histogram",
        (),
        "Time that one turn of the loop took, without waiting.",
        "turns above 0.25 s: kills by the engine come that late",
    ),
    Family(
        "process_cpu_seconds",
        "counter",
        (),
        "CPU time of agentwatch.",
        "a rate near 1: the loop is busy all the time, and events will be lost",
    ),
    Family(
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Memory of agentwatch; the rings are mapped, and counted, twice.",
        "steady growth",
    ),
    Family("process_open_fds", "gauge", (), "Descriptors that agentwatch holds.", "steady growth"),
    Family(
        "process_start_time_seconds",
        "gauge",
        (),
        "When agentwatch was started, since the epoch.",
        "changes nobody made: it was restarted, and what runs was unwatched meanwhile",
    ),
    Family("build", "info", ("version",), "The version of agentwatch that runs."),
)


def reference() -> str:
    """The table as Markdown, for docs/metrics.md."""
    lines = ["| metric | type | labels | what it is | alert on |", "|---|---|---|---|---|"]
    for one in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        # A bar would end the cell.
        alert = one.alert.replace("|", "\\|")
        lines.append(f"| `{one.full_name}` | {one.type} | {labels} | {one.text} | {alert} |")
    return "\n".join(lines) + "\n"
