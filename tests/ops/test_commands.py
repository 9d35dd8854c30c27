"""The commands of the control socket: what each one answers and does, without a socket."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

import pytest
from secure import contexts
from support import (
    PATIENCE,
    ROOT,
    EchoRequest,
    client,
    echo,
    observed,
    receive_all,
    serving,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.cores import has_gil
from netkit.ops import actions
from netkit.ops.commands import COMMANDS, answer
from netkit.server import log

from .programs import FakeProgram

ME = os.getpid()
needs_gil = pytest.mark.skipif(not has_gil(), reason="no stacks of other threads without the GIL")


def rows(program: FakeProgram, command: str) -> list[dict[str, Any]]:
    """The answer to a command, as JSON objects."""
    return [json.loads(line) for line in answer(f"json {command}", program) if line]


def text(program: FakeProgram, command: str) -> str:
    """The answer to a command, as text."""
    return "".join(answer(command, program))


def one(program: FakeProgram, command: str) -> dict[str, Any]:
    """The only row of the answer."""
    (row,) = rows(program, command)
    return row


def silent(question: str, arguments: dict[str, Any]) -> Any:
    """A worker that does not answer."""
    raise TimeoutError("no answer within 1 s")


class Worker:
    """A worker that is faked: it answers each question with what it has been given."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, question: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((question, arguments))
        return self.answers.get(question)


# The status


def test_the_status_says_how_the_program_is() -> None:
    with serving(echo, max_connections=7) as server, client(server) as sock:
        sock.sendall(b"abc")
        sock.recv(3)
        program = FakeProgram(server)
        wait_until(lambda: one(program, "status")["sent"] == 3)
        row = one(program, "status")
        assert {name: row[name] for name in ("phase", "ready", "reason", "pid", "workers")} == {
            "phase": "ready",
            "ready": True,
            "reason": "",
            "pid": ME,
            "workers": 0,
        }
        assert (row["connected"], row["limit"], row["held"], row["refused"]) == (1, 7, 0, 0)
        assert (row["accepted"], row["closed"], row["received"], row["sent"]) == (1, 0, 3, 3)
        assert row["addresses"] == [str(server.address)]
        assert 10 <= row["uptime"] < 10 + PATIENCE
        assert [each["pid"] for each in row["processes"]] == [ME]
        shown = text(program, "status")
        assert f"netkit     {netkit.__version__}, Python " in shown
        assert "connected  1 of at most 7, 0 held\n" in shown
        assert "workers" not in shown


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        ("starting", "the program does not accept clients yet"),
        ("suspended", "an operator has suspended it"),
        ("stopping", "it is stopping"),
    ],
)
def test_a_program_that_is_not_ready_says_why(phase: str, reason: str) -> None:
    with serving(echo) as server:
        program = FakeProgram(server)
        program.phase = phase
        row = one(program, "status")
        assert (row["phase"], row["ready"], row["reason"]) == (phase, False, reason)
        shown = phase if phase == "stopping" else f"{phase}: {reason}"
        assert f"state      {shown}\n" in text(program, "status")


def test_the_status_adds_up_the_workers_also_those_that_have_ended_and_names_the_silent() -> None:
    with serving(echo) as server, client(server):
        wait_until(lambda: server.connection_count)
        status = FakeProgram(server).answer("status", {})
        refused = {'netkit_connections_refused_total{reason="allow"}': 2}
        other = Worker(
            status={**status, "connected": 5, "refused": 2, "suspended": True},
            metrics={"counters": refused, "gauges": {}},
        )
        program = FakeProgram(server, others={1: other, 2: silent})
        program.retired = {
            'netkit_connections_refused_total{reason="deny"}': 4.0,
            "netkit_received_bytes_total": 100.0,
        }
        row = one(program, "status")
        assert (row["connected"], row["refused"], row["received"], row["workers"]) == (6, 6, 100, 3)
        failed = [each for each in row["processes"] if each["error"]]
        assert failed == [{"pid": 2, "error": "no answer within 1 s"}]
        shown = text(program, "status")
        assert "worker 1: 5 connected, 0 held, 2 refused, " in shown
        assert ", suspended\nworker 2: no answer within 1 s\n" in shown
        assert "workers    3, 0 restarts\n" in shown
        alone = FakeProgram(server, others={2: silent})
        alone.questions["status"] = lambda: silent("", {})
        assert one(alone, "status")["reason"] == "no process answers"


def test_the_sums_are_taken_anew_if_a_process_ends_meanwhile() -> None:
    class Ending(FakeProgram):
        asked = ends = 0

        def ask(self, command: str, *given: Any) -> Any:
            self.asked += command == "metrics"
            if self.asked <= self.ends:
                self.retired = {"netkit_sent_bytes_total": 1.0 + self.asked}
            return super().ask(command, *given)

    with serving(echo) as server:
        for ends, asked in ((0, 1), (1, 2), (100, 3)):
            program = Ending(server)
            program.ends = ends
            one(program, "status")
            assert program.asked == asked


# Clients


def test_each_client_is_shown_with_its_figures() -> None:
    with serving(echo) as server, client(server) as sock:
        sock.sendall(b"abc")
        sock.recv(3)
        program = FakeProgram(server)
        wait_until(lambda: one(program, "conns")["out"] == 3)
        row = one(program, "conns")
        peer = "{}:{}".format(*sock.getsockname())
        assert (row["peer"], row["local"], row["worker"]) == (peer, str(server.address), ME)
        assert (row["state"], row["in"], row["out"], row["via"]) == ("serving", 3, 3, "")
        assert (row["send_queue"], row["retransmits"], row["tls"], row["end"]) == (0, 0, "", "")
        assert 0 <= row["idle"] <= row["age"] + 0.1
        assert row["rtt"] > 0
        heading, line = text(program, "conns").splitlines()
        assert heading.split()[:4] == ["id", "worker", "peer", "via"]
        assert line.split()[:5] == [row["id"], str(ME), peer, "-", "serving"]
        assert text(program, "conns peer=192.0.2.1") == ""


@needs_gil
def test_the_line_of_the_program_at_which_a_client_is_served_is_shown() -> None:
    going_on = threading.Event()

    def wait(conn: netkit.Connection) -> None:
        going_on.wait(PATIENCE)
        conn.readline()

    class Request(EchoRequest):
        pass

    with serving(wait) as server, client(server):
        program = FakeProgram(server)
        wait_until(lambda: "test_commands.py" in text(program, "conns"))
        assert one(program, "conns")["where"].endswith(" wait")
        going_on.set()
        wait_until(lambda: one(program, "stacks")["inside"])
        row = one(program, "stacks")
        assert row["frames"][0]["code"] == "conn.readline()"
        assert row["inside"].endswith(" receive")
        assert row["thread"] == f"netkit-{row['id']} {row['peer']}"
        shown = text(program, f"stacks {row['id']}")
        assert f" wait: conn.readline()\n  inside netkit: {row['inside']}\n" in shown
    with serving(Request) as server, client(server):
        program = FakeProgram(server)
        wait_until(lambda: " support.py:" in text(program, "conns"))


def test_what_netkit_does_is_shown_where_no_code_of_the_program_runs() -> None:
    with serving(echo, tls=contexts()[0]) as server, client(server):
        program = FakeProgram(server)
        wait_until(lambda: rows(program, "conns state=handshake"))
        assert one(program, "conns")["where"]
        assert one(program, "conns state=handshake")
        assert rows(program, "conns state=serving") == []


def test_filters_choose_clients() -> None:
    with serving(echo) as server, client(server) as sock:
        sock.sendall(b"x")
        sock.recv(1)
        program = FakeProgram(server, others={1: Worker(conns={"rows": [], "next": None})})
        for wanted in ("older=0", "idle=0s peer=127.0.0.0/8", f"worker={ME}", "state=serving"):
            assert len(rows(program, f"conns {wanted}")) == 1, wanted
        for other in ("older=1h", "idle=1h", "peer=10.0.0.0/8", "worker=1", "state=held"):
            assert rows(program, f"conns {other}") == [], other
        missing = one(program, "conns worker=99")
        assert missing == {"error": "worker 99: no such worker", "worker": 99}


def test_a_client_of_a_unix_socket_has_no_figures_of_tcp(tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    with netkit.create_server(echo).listen(path=path) as server, netkit.connect(path=path):
        wait_until(lambda: server.connection_count)
        program = FakeProgram(server)
        row = one(program, "conns")
        assert (row["idle"], row["rtt"], row["retransmits"]) == (None, None, None)
        assert row["local"] == f"unix:{path}"
        assert rows(program, "conns idle=0") == rows(program, "conns peer=127.0.0.1") == []
        assert " - " in text(program, "conns")


def test_held_clients_and_threads_that_wait_for_a_client_are_named() -> None:
    with serving(echo, max_connections=1, when_full=PATIENCE) as server, client(server) as first:
        first.sendall(b"x")
        first.recv(1)
        with client(server) as second:
            program = FakeProgram(server)
            wait_until(lambda: rows(program, "conns state=held"))
            held = one(program, "conns state=held")
            assert (held["id"], held["age"]) == ("", None)
            assert held["peer"] == "{}:{}".format(*second.getsockname())
            assert held["local"] == str(server.address)
            assert rows(program, "conns peer=127.0.0.1 state=held") == [held]
            assert rows(program, "conns peer=192.0.2.1") == []
            assert [row["state"] for row in rows(program, "stacks")] == ["serving", "held"]
            assert one(program, "status")["held"] == 1
    server = netkit.create_server(echo)
    server.daemon_threads = True
    with server.listen(0, "127.0.0.1"):
        with client(server) as sock:
            sock.sendall(b"x")
            sock.recv(1)
        program = FakeProgram(server)
        wait_until(lambda: [row["state"] for row in rows(program, "stacks")] == ["parked"])
        assert text(program, "stacks") == "- - parked netkit-parked\n"


def test_the_rows_of_many_clients_come_in_pages_each_once_and_in_order() -> None:
    with serving(echo) as server:
        socks = [client(server) for _ in range(7)]
        connected = [sock.__enter__() for sock in socks]
        try:
            wait_until(lambda: server.connection_count == 7)
            program = FakeProgram(server)
            conns = program.questions["conns"]
            program.questions["conns"] = lambda **given: conns(count=3, **given)
            lines = list(answer("json conns", program))
            assert lines.count("") == 2  # so each page can be sent before the next one is made
            found = [int(json.loads(line)["id"]) for line in lines if line]
            assert found == sorted(each.id for each in server.connections)
        finally:
            for sock in connected:
                sock.close()


def test_a_worker_that_does_not_answer_is_named_and_the_others_answer() -> None:
    page = {"rows": [{"id": 7, "peer": "192.0.2.7:1"}], "next": None}
    with serving(echo) as server, client(server):
        wait_until(lambda: server.connection_count)
        program = FakeProgram(server, others={1: Worker(conns=page), 2: silent})
        own = server.connections[0].id
        first, failed, mine = rows(program, "conns")
        assert (first["id"], first["worker"]) == ("1.7", 1)
        assert failed == {"error": "worker 2: no answer within 1 s", "worker": 2}
        assert mine["id"] == f"{ME}.{own}"
        assert text(program, "log info").startswith("error: worker 2: no answer within 1 s\n")


# Ending clients


def computing(conn: netkit.Connection) -> None:
    conn.write("x")
    while not conn.server.may_end:
        sum(range(1000))
    conn.readline()


def writing(conn: netkit.Connection) -> None:
    conn.write("x")
    conn.write(bytes(50_000_000))


def reading(conn: netkit.Connection) -> None:
    conn.write("x")
    conn.readline()


@pytest.mark.parametrize("handler", [reading, writing, computing])
def test_a_killed_client_sees_the_end_when_its_handler_next_touches_the_connection(
    handler: Any,
) -> None:
    with serving(handler) as server, observed(events.ConnectionClosed, events.ClientFailed) as seen:
        server.may_end = False  # type: ignore[attr-defined]
        with client(server) as sock:
            assert sock.recv(1) == b"x"
            program = FakeProgram(server)
            (connection,) = server.connections
            if handler is not computing:
                wait_until(lambda: connection._link.waiting or connection._link.writing)
            row = one(program, f"kill {connection.id}")
            assert row == {
                "id": str(connection.id),
                "peer": connection.peer,
                "worker": ME,
                "result": "killed",
            }
            server.may_end = True  # type: ignore[attr-defined]
            until_end(sock)
        wait_until(lambda: len(seen) == 2)
        failed, closed = seen
        assert isinstance(failed.error, netkit.KilledError)
        assert closed.end == "killed"


def until_end(sock: Any) -> None:
    """Receive until the end of input, or a reset."""
    try:
        receive_all(sock)
    except ConnectionResetError:
        return


@pytest.mark.parametrize("tls", [True, False])
def test_a_client_is_killed_in_its_handshake_and_in_a_handler_of_the_bare_socket(tls: bool) -> None:
    options = {"tls": contexts()[0]} if tls else {}
    handler = echo if tls else EchoRequest
    with serving(handler, **options) as server, observed(events.ConnectionClosed) as seen:
        with client(server) as sock, observed(events.ClientFailed) as failed:
            program = FakeProgram(server)
            state = "handshake" if tls else "serving"
            wait_until(lambda: [row["state"] for row in rows(program, "conns")] == [state])
            assert text(program, "kill peer=127.0.0.0/8").endswith(": killed\n")
            until_end(sock)
            wait_until(lambda: seen)
        assert [type(each.error) for each in failed] == [netkit.KilledError]
        assert seen[0].end == "killed"


def test_a_client_that_is_asked_to_end_gets_the_reply_to_its_message() -> None:
    def reply(conn: netkit.Connection) -> None:
        for line in conn.lines():
            conn.write(line.upper())

    with serving(reply) as server, client(server) as sock:
        sock.sendall(b"one\ntw")
        assert sock.recv(3) == b"ONE"
        program = FakeProgram(server)
        (connection,) = server.connections
        wait_until(lambda: connection._link.waiting)
        assert one(program, f"end {connection.id}")["result"] == "ending"
        sock.sendall(b"o\n")
        assert receive_all(sock) == b"TWO"
        assert connection.end_reason == "drained"


def test_a_busy_handler_of_the_bare_socket_is_asked_to_end_once_its_client_is_silent() -> None:
    with serving(EchoRequest) as server, client(server) as sock:
        wait_until(lambda: server.connection_count)
        program = FakeProgram(server)
        sock.sendall(b"x")
        (connection,) = server.connections
        text(program, f"end {connection.id}")
        text(program, f"end {connection.id}")
        assert receive_all(sock) in (b"x", b"")
        wait_until(lambda: "netkit-end" not in {each.name for each in threading.enumerate()})


def test_a_client_can_be_asked_to_end_once_the_system_gives_a_thread_for_it() -> None:
    with serving(EchoRequest) as server, client(server) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        (connection,) = server.connections
        connection.quiet_seconds = PATIENCE  # it counts as busy
        sock.sendall(b"y")
        program = FakeProgram(server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError):
                program.questions["end"](ids=[connection.id])
        connection.quiet_seconds = 0.0
        assert one(program, f"end {connection.id}")["result"] == "ending"
        until_end(sock)


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_clients_are_named_by_number_or_by_process_and_number_and_missing_ones_are_errors() -> None:
    other = Worker(kill=[{"id": 9, "peer": "192.0.2.9:1"}])
    with serving(echo) as server, client(server):
        wait_until(lambda: server.connection_count)
        program = FakeProgram(server, others={1: other, 2: silent})
        (connection,) = server.connections
        assert one(program, f"kill {ME}.{connection.id}")["id"] == f"{ME}.{connection.id}"
        assert [row.get("id") for row in rows(program, "kill 1.9")] == ["1.9"]
        assert other.asked == [("kill", {"ids": [9]})]
        expected = ["worker 2: no answer within 1 s"]  # it may have this client
        assert [row["error"] for row in rows(program, "kill 2.5")] == expected
        assert one(program, f"end {ME}.99")["error"] == f"no client has the id {ME}.99"
        missing = "no client has the id 99\n"
        assert text(FakeProgram(server), "stacks 99") == f"error: {missing}"
        assert [row["error"] for row in rows(program, "stacks 2.5")] == expected
        assert (
            text(FakeProgram(server), "kill peer=192.0.2.0/24")
            == "error: no client is in 192.0.2.0/24\n"
        )


# Orders


def test_a_worker_that_does_not_answer_hides_no_client_that_another_one_has_killed() -> None:
    other = Worker(kill=[{"id": 9, "peer": "192.0.2.9:1"}])
    with serving(echo) as server:
        program = FakeProgram(server, others={1: other, 2: silent})
        error = "worker 2: no answer within 1 s"
        shown = text(program, "kill peer=::/0")
        assert shown == f"1.9 192.0.2.9:1: killed\nerror: {error}\n"
        killed, failed = rows(program, "kill peer=::/0")
        assert (killed["result"], failed) == ("killed", {"error": error, "worker": 2})


def test_clients_wait_while_the_program_is_suspended_also_in_workers_to_come() -> None:
    other = Worker()
    with serving(echo) as server:
        program = FakeProgram(server, others={1: other})
        assert text(program, "suspend") == "suspended: new clients wait\n"
        assert server._admission.suspended
        assert one(program, "resume") == {"result": "resumed"}
        assert not server._admission.suspended
        assert other.asked == [(name, {}) for name in ("suspend", "suspend", "resume", "resume")]
        assert program.orders == [
            ("standing", {"command": name, "arguments": {}, "key": "suspend"})
            for name in ("suspend", "resume")
        ]


@pytest.mark.parametrize(
    ("command", "order", "result"),
    [
        ("stop", ("stop", {}), "stopping"),
        ("stop 5", ("stop", {"timeout": 5.0}), "stopping"),
        ("stop 1m 500ms", ("stop", {"timeout": 60.0, "patience": 0.5}), "stopping"),
        ("reload", ("reload", {}), "reloading"),
        ("workers 4", ("resize", {"count": 4}), "workers: 4"),
    ],
)
def test_orders_are_passed_on(command: str, order: tuple[str, Any], result: str) -> None:
    with serving(echo) as server:
        program = FakeProgram(server, others={1: Worker()})
        assert one(program, command) == {"result": result}
        assert program.orders == [order]
        assert (
            text(FakeProgram(server), "workers 2") == "error: one process serves, without workers\n"
        )


def test_options_are_shown_and_changed_also_in_workers_to_come() -> None:
    with serving(echo, allow=["10.0.0.0/8", "127.0.0.1"]) as server:
        alone = FakeProgram(server)
        assert text(alone, "set idle_timeout 90s") == "idle_timeout is 90s, for new clients\n"
        assert (
            text(alone, "get idle_timeout allow") == "idle_timeout 90\nallow 10.0.0.0/8,127.0.0.1\n"
        )
        assert one(alone, "set max_connections 5")["result"]
        assert server._options.max_connections == 5
        assert alone.orders == []
        other = Worker(get={"idle_timeout": "90"})
        program = FakeProgram(server, others={1: other, 2: silent})
        *_, failed = rows(program, "get idle_timeout")
        assert failed["error"] == "worker 2: no answer within 1 s"
        text(program, "set idle_timeout off")
        assert server._options.idle_timeout is None
        for name, value in (("max_connections", "6"), ("profile", "public")):
            failed = one(program, f"set {name} {value}")
            assert failed["error"].startswith(f"{name} is for all workers together: it cannot be")
        given = {"name": "idle_timeout", "value": "off"}
        assert program.orders == [
            ("standing", {"command": "set", "arguments": given, "key": "set idle_timeout"})
        ]
        first, second, _ = rows(program, "get idle_timeout")
        assert first == {"name": "idle_timeout", "value": "90", "worker": 1}
        assert second == {"name": "idle_timeout", "value": "off", "worker": ME}
        assert text(program, "get idle_timeout").splitlines()[0] == "idle_timeout 90 (worker 1)"


def test_a_value_that_workers_to_come_cannot_get_changes_no_worker() -> None:
    rules = ",".join(f"192.0.2.{i % 256}" for i in range(1200))
    with serving(echo) as server:
        other = Worker()
        program = FakeProgram(server, others={1: other})
        assert "the value is too long" in one(program, f"set deny {rules}")["error"]
        assert (server._options.deny, other.asked, program.orders) == (None, [], [])
        assert "result" in one(FakeProgram(server), f"set deny {rules}")  # one process has no limit


def test_the_level_of_the_log_is_changed() -> None:
    level = log.logger.level
    try:
        with serving(echo) as server:
            expected = "the level of the log is error until the next start\n"
            assert text(FakeProgram(server), "log error") == expected
        assert log.logger.level == logging.ERROR
    finally:
        log.logger.setLevel(level)


# Live events


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "EVENTS_SECONDS", 0.0)


def test_events_are_shown_as_they_happen(no_pause: None) -> None:
    with serving(echo) as server:
        asked = iter([False, False, True])
        turns = iter([lambda: None, lambda: events.emit(events.Report(7, "h:1", "hello"), server)])

        def is_gone(_: float) -> bool:
            next(turns, lambda: None)()
            return next(asked)

        program = FakeProgram(server)
        lines = list(answer("events Report HookFailed", program, is_gone))
        assert lines.count("") == 3
        (row,) = (json.loads(line) for line in lines if line)
        assert (row["event"], row["worker"], row["id"]) == ("Report", ME, 7)
        assert (row["message"], row["text"], row["peer"]) == ("[7] hello", "hello", "h:1")
        assert abs(row["time"] - time.time()) < PATIENCE


def test_events_of_several_workers_come_in_order_and_lost_ones_are_counted(no_pause: None) -> None:
    def news(*times: float, lost: int = 0) -> Worker:
        happened = [{"time": at, "event": "Report"} for at in times]
        return Worker(events={"events": happened, "lost": lost})

    with serving(echo) as server:
        program = FakeProgram(server, others={1: news(2.0, 4.0, lost=3), 2: silent})
        program.questions["events"] = lambda **_: news(1.0, 3.0, lost=1)("events", {})
        lines = [json.loads(line) for line in answer("events", program, lambda _: True) if line]
        *happened, lost = lines
        assert [row["time"] for row in happened] == [1.0, 2.0, 3.0, 4.0]
        assert [row["worker"] for row in happened] == [ME, 1, ME, 1]
        assert lost == {"event": "lost", "count": 4}


# Wrong commands


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("conns age=5", "unknown filter 'age=5'; usage: conns [older=TIME]"),
        ("conns older=soon", "older: 'soon' is not a time such as 30, 500ms, 5m or 2h; usage: "),
        ("conns peer=here", "peer: not an IP address: 'here'; usage: "),
        ("conns worker=x", "worker: 'x' is not a number; usage: "),
        (
            "conns state=x",
            "state: it must be one of proxy, handshake, serving, killed, closing, held, not",
        ),
        ("stacks x", "'x' is not a number; usage: stacks [ID...]"),
        ("kill", "an ID is missing; usage: kill ID... | peer=NETWORK"),
        ("kill 1.2.3", "'1.2' is not a number; usage: "),
        ("end", "an ID is missing; usage: end ID..."),
        ("stop -1", "'-1' is not a time such as "),
        ("stop 1 2 3", "unexpected '3'; usage: stop [SECONDS [PATIENCE]]"),
        ("workers 0", "workers must be from 1 to "),
        ("workers many", "'many' is not a number; usage: workers N"),
        ("set", "a name and a value are needed; usage: set NAME VALUE"),
        ("set max_line", "a name and a value are needed; usage: set NAME VALUE"),
        ("set max_line x", "max_line: it must be a number of bytes, not 'x'; usage: "),
        ("set max_line off", "max_line: it must be a number of bytes, not 'off'; usage: "),
        ("set max_lin 1", "unknown option 'max_lin'; did you mean 'max_line'?; usage: "),
        ("set handler_args x", "handler_args cannot be written as text; usage: "),
        ("get xyz", "unknown option 'xyz'; get lists the options; usage: get [NAME...]"),
        ("log loud", "the level must be one of debug, info, warning, error, critical, not 'loud'"),
        ("events Foo", "unknown event 'Foo'; docs/events.md lists them; usage: events [KIND...]"),
        ("help foo", "unknown command 'foo'; help lists the commands; usage: help [COMMAND...]"),
    ],
)
def test_a_wrong_command_says_what_to_write_and_does_nothing(command: str, error: str) -> None:
    with serving(echo) as server:
        program = FakeProgram(server)
        assert text(program, command).startswith(f"error: wrong use: {error}")
        assert one(program, command)["error"].startswith(f"wrong use: {error}")
        assert program.orders == []


def test_a_value_that_the_other_options_do_not_allow_is_no_wrong_use() -> None:
    with serving(echo) as server:
        error = text(FakeProgram(server), "set tls_key x")
        assert error.startswith("error: tls_key needs tls_cert")


def test_help_and_the_documentation_list_every_command() -> None:
    with serving(echo) as server:
        program = FakeProgram(server)
        assert [row["command"] for row in rows(program, "help")] == list(COMMANDS)
        assert one(program, "help kill")["usage"] == "kill ID... | peer=NETWORK"
        assert text(program, "help status").splitlines()[0] == "status"
    page = (ROOT / "docs/operations.md").read_text()
    for name, command in COMMANDS.items():
        assert f"`{name} {command.usage}".rstrip() + "`" in page.replace("\\|", "|"), name
