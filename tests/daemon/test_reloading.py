"""Other rules, another configuration: in force from one moment to the next, or not at all."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentwatch.errors import RuleErrors
from agentwatch.sinks.frames import Kill, Reload, Session, Verdict
from tests.daemon.running import PATIENCE, Daemon, Place, counts, cue, grows, line_of, reads, until

pytestmark = pytest.mark.root


def kills(place: Place, name: str) -> bool:
    """Whether an agent that opens a file is killed for it; one that is not says so."""
    agent = place.agent(f"exec 3< {place[name]}; while :; do echo lives; sleep 0.02; done")
    until(lambda: agent.poll() is not None or judged(place, agent.pid), "its end or a verdict")
    return agent.poll() == -signal.SIGKILL


def judged(place: Place, pid: int) -> bool:
    return any(one.process.pid == pid and one.response != "kill" for one in place.frames(Verdict))


def test_a_signal_reloads(daemon: Daemon, place: Place) -> None:
    """RELOADING and READY are said; the new rule acts, and its generation is in the verdict."""
    place.rules["other"] = "kill"
    place.write()
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: place.supervisor.count("READY=1") == 2, "READY")
    begun = [one for one in place.supervisor.told if one.startswith("RELOADING=1\nMONOTONIC_USEC=")]
    assert len(begun) == 1
    assert "STATUS=2 rules" in place.supervisor.told[-1]
    status = daemon.status
    assert (status["generation"], status["rules"]["loaded"]) == (2, 2)
    assert status["reloaded_at"] > status["started_at"]
    assert place.agent(reads(place, "other")).wait(PATIENCE) == -signal.SIGKILL
    (verdict,) = place.awaited(Verdict)
    assert (verdict.rule, verdict.generation) == ("test.other", 2)
    (told,) = place.awaited(Reload)
    assert (told.ok, told.generation, told.rules) == (True, 2, 2)


def test_rules_that_have_no_place_in_the_kernel_are_named(daemon: Daemon, place: Place) -> None:
    """In the journal, in `status` and what systemd shows: they are worth less than they look."""
    one = "on: read, action: kill, because: b, tests: []"
    crowd = [
        f"  - {{id: crowd.r{n:03}, {one}, match: {{path: /nowhere, process.exe: /bin/{n}}}}}\n"
        for n in range(177)
    ]
    place["crowd.yaml"].write_text("schema: agentwatch/v1\nrules:\n" + "".join(crowd))
    place.write(rules=[str(place["rules.yaml"]), str(place["crowd.yaml"])])
    daemon.reload()
    said = "1 rule stays with the engine for room: crowd.r176"
    assert [one for one in daemon.status["problems"] if said in one]
    assert said in place.supervisor.told[-1]
    (told,) = place.awaited(Reload)
    assert (told.ok, told.message) == (True, said)


def test_a_request_reloads_and_tells_what_is_loaded(daemon: Daemon, place: Place) -> None:
    """A session that is at work meanwhile goes on, and is judged by the new rules."""
    agent = place.agent(f"echo started; read line; {reads(place, 'other')}")
    session = daemon.session(agent.pid)
    place.rules["other"] = "kill"
    place.write()
    loaded = daemon.reload()
    assert (loaded["generation"], loaded["rules"], loaded["warnings"]) == (2, 2, [])
    assert (loaded["seconds"] > 0, loaded["restart"]) == (True, [])
    assert daemon.session(agent.pid)["session"] == session["session"]
    cue(agent)
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    place.rules.clear()
    place.rules["other"] = "alert"
    place.write()
    assert daemon.reload()["generation"] == 3
    assert not kills(place, "other")  # what is gone from the rules acts no more


def broken_rules(place: Place) -> None:
    place.rules["other"] = "slap"
    place.write()


def broken_config(place: Place) -> None:
    place.rules["other"] = "kill"
    place.write(mode="enforced")


def no_config(place: Place) -> None:
    place.config.unlink()


def unknown_agent(place: Place) -> None:
    place.write(audit={"nobody-s": "all"})


@pytest.mark.parametrize(
    ("breaks", "file", "line", "column"),
    [
        (broken_rules, "rules.yaml", 17, 13),
        (broken_config, "agentwatch.yaml", 1, 7),
        (no_config, "agentwatch.yaml", 0, 0),
        (unknown_agent, "agentwatch.yaml", 7, 9),
    ],
    ids=["rules", "config", "missing", "agent"],
)
def test_what_is_wrong_changes_nothing(
    daemon: Daemon, place: Place, breaks: Any, file: str, line: int, column: int
) -> None:
    """The answer says where the mistake is; the old rules stay in force, and `status` says so."""
    breaks(place)
    with pytest.raises(RuleErrors) as error:
        daemon.reload()
    first = error.value.diagnostics[0]
    assert (first.file, first.line, first.column) == (str(place[file]), line, column)
    assert first.severity == "error"
    status = daemon.status
    assert (status["generation"], status["mode"], status["rules"]["loaded"]) == (1, "enforce", 1)
    assert f"{place[file]}:" in status["reload_error"]
    assert any("the last reload was refused" in one for one in status["problems"])
    (told,) = place.awaited(Reload)
    assert (told.ok, told.generation, told.message) == (False, 1, status["reload_error"])
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL

    place.rules["other"] = "kill"
    place.write(mode="enforce", audit=None)
    assert daemon.reload()["generation"] == 2
    assert daemon.status["reload_error"] == ""
    until(lambda: not daemon.status["problems"], "a status without problems")
    assert place.agent(reads(place, "other")).wait(PATIENCE) == -signal.SIGKILL


def test_a_signal_that_finds_something_wrong_is_done_too(daemon: Daemon, place: Place) -> None:
    """READY follows RELOADING whatever came of it: systemd would wait for it."""
    broken_rules(place)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: place.supervisor.count("READY=1") == 2, "READY")
    assert daemon.status["reload_error"]


def test_requests_while_one_runs_are_all_answered(daemon: Daemon, place: Place) -> None:
    """None is told of a state before its own request, and the last one asked for is in force."""
    files = {f"file{number}": "alert" for number in range(300)}  # it takes a while to load
    with ThreadPoolExecutor(16) as pool:
        place.rules |= files
        place.write()
        first = pool.submit(daemon.reload)
        until(lambda: daemon.status["connections"] >= 2, "two connections")
        early = [pool.submit(daemon.reload) for _ in range(5)]
        place.rules["other"] = "kill"
        place.write()
        late = [pool.submit(daemon.reload) for _ in range(5)]
        daemon.process.send_signal(signal.SIGHUP)
        answers = [one.result(60) for one in (first, *early, *late)]
    assert {one["rules"] for one in answers} <= {301, 302}
    assert [one["rules"] for one in answers[6:]] == [302] * 5
    until(lambda: daemon.status["rules"]["loaded"] == 302, "302 rules")
    generation = daemon.status["generation"]
    assert max(one["generation"] for one in answers) <= generation
    assert len({one["generation"] for one in answers}) < len(answers)  # some were one load
    assert place.agent(reads(place, "other")).wait(PATIENCE) == -signal.SIGKILL
    generations = [one.generation for one in place.awaited(Reload)]
    assert generations == sorted(set(generations))


def test_the_loop_goes_on_while_rules_are_loaded(daemon: Daemon, place: Place) -> None:
    """A kill does not wait for a reload."""
    place.rules |= {f"file{number}": "alert" for number in range(300)}
    place.write()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(daemon.reload)
        assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL
        assert daemon.status["pid"] == daemon.pid
        assert loading.result(60)["rules"] == 301


def test_an_identity_that_comes_with_a_reload_finds_who_runs(daemon: Daemon, place: Place) -> None:
    """An agent nobody knew of when it was started is a session from then on, and is judged."""
    agent = place.agent(f"echo started; read line; {reads(place)}", name="late")
    assert line_of(agent) == "started"
    assert daemon.sessions == []
    place.identities.append("late")
    place.write()
    daemon.reload()
    assert daemon.session(agent.pid)["agents"] == ["late"]
    (told,) = place.awaited(Session)
    assert told.how == "running"
    cue(agent)
    assert agent.wait(PATIENCE) == -signal.SIGKILL
    assert place.agent(reads(place), name="late").wait(PATIENCE) == -signal.SIGKILL


def test_an_identity_that_goes_begins_no_session(daemon: Daemon, place: Place) -> None:
    """Sessions that there are go on: the first tag sticks."""
    place.identities.append("late")
    place.write()
    daemon.reload()
    before = place.agent("echo started; read line", name="late")
    daemon.session(before.pid)
    place.identities.remove("late")
    place.write()
    daemon.reload()
    after = place.agent("echo started; read line", name="late")
    assert line_of(after) == "started"
    assert place.agent(reads(place)).wait(PATIENCE) == -signal.SIGKILL  # by then it was seen
    assert [one["pid"] for one in daemon.sessions if one["agents"] == ["late"]] == [before.pid]


def test_mode_observe_stops_killing(daemon: Daemon, place: Place) -> None:
    """What would have been done is said, and nothing is; and back again."""
    place.write(mode="observe")
    daemon.reload()
    assert daemon.status["mode"] == "observe"
    assert not kills(place, "key")
    (verdict,) = place.awaited(Verdict)
    assert (verdict.action, verdict.outcome) == ("kill", "observed")
    assert place.frames(Kill) == []
    place.write(mode="enforce")
    daemon.reload()
    assert kills(place, "key")


def test_what_needs_a_restart_is_named(daemon: Daemon, place: Place) -> None:
    """The rest of the new configuration is in force at once, and `status` keeps saying it."""
    place.write(
        mode="observe",
        socket=str(place["other.sock"]),
        journal={"dir": str(place.journal), "segment_bytes": "2MiB"},
        breaker={"kills": 3},
    )
    assert daemon.reload()["restart"] == ["journal.segment_bytes", "socket"]
    assert daemon.reload()["restart"] == ["journal.segment_bytes", "socket"]
    status = daemon.status
    assert status["mode"] == "observe"
    assert any("journal.segment_bytes, socket" in one for one in status["problems"])
    place.write(socket=str(place.socket), journal={"dir": str(place.journal)})
    assert daemon.reload()["restart"] == []
    assert daemon.status["problems"] == []


def test_an_agent_is_not_disturbed_by_reloads(daemon: Daemon, place: Place) -> None:
    """Ten in a row: it works on, its session is one, and no record is lost."""
    script, file = counts(place)
    agent = place.agent(script)
    session = daemon.session(agent.pid)["session"]
    for number in range(10):
        place.rules["other"] = ("alert", "kill")[number % 2]
        place.write()
        assert daemon.reload()["generation"] == number + 2
    assert grows(file)
    assert [one["session"] for one in daemon.sessions] == [session]
    assert not any(daemon.status["losses"].values())
