"""The limits of a whole server: which clients wait, are held or are refused."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from secure import contexts
from support import (
    PATIENCE,
    ROOT,
    Program,
    client,
    each_echo,
    echo,
    exchange,
    in_thread,
    in_threads,
    input_of_client,
    observed,
    receive_all,
    receive_exactly,
    serving,
    wait_until,
)

import netkit
from netkit.cli import main
from netkit.core import events
from netkit.process.shared import SharedPlaces


def answers(sock: socket.socket) -> bool:
    sock.sendall(b"x")
    return receive_exactly(sock, 1) == b"x"


def is_silent(sock: socket.socket) -> bool:
    sock.settimeout(0.1)
    try:
        return sock.recv(1) == b"none is expected"
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)


# How many clients


@each_echo
def test_when_it_is_full_the_next_client_waits_until_one_leaves(handler: Any) -> None:
    with observed(events.Refusing) as told:
        with serving(handler, max_connections=2) as server:
            with client(server) as first, client(server) as second:
                assert answers(first)
                assert answers(second)
                with client(server) as third:
                    third.sendall(b"x")
                    assert is_silent(third)
                    assert server.connection_count == 2
                    first.close()
                    assert receive_exactly(third, 1) == b"x"
            assert server.refused_count == 0
    assert told == [events.Refusing("max_connections", "", True)]


@each_echo
def test_when_it_is_full_the_next_client_may_be_refused_with_a_message(handler: Any) -> None:
    options = {"max_connections": 1, "when_full": "refuse", "refusal": "come again\n"}
    with observed(events.ClientRefused) as refused, serving(handler, **options) as server:
        with client(server) as first:
            assert answers(first)
            for _ in range(3):
                with client(server) as second:
                    second.sendall(b"what it has to say " * 1000)
                    assert receive_all(second) == b"come again\n"
            assert server.refused_count == 3
            assert answers(first)
        wait_until(lambda: exchange(server, b"x") == b"x", "a free place")
    assert {event.reason for event in refused} == {"max_connections"}
    assert refused[0].local == (*server.server_address, "IPv4")


def test_a_refusal_is_written_in_the_encoding_of_the_server() -> None:
    options = {"max_connections": 0, "when_full": "refuse", "refusal": "66756c6c"}
    with serving(netkit.EchoHandler, encoding="hex", **options) as server:
        assert exchange(server, b"") == b"full"
        with pytest.raises(ValueError, match="refusal cannot be written in us-ascii: '\xfc'"):
            server.configure(refusal="\xfc", encoding="us-ascii")
        server.configure(refusal="b\xfcsy", encoding="latin-1")
        assert exchange(server, b"") == b"b\xfcsy"


YEARS = 1e9  # seconds: more than poll(2) can wait for at once


@each_echo
def test_a_limit_may_be_years(handler: Any) -> None:
    limits = {"idle_timeout": YEARS, "read_timeout": YEARS, "write_timeout": YEARS}
    limits |= {"lifetime": YEARS, "drain_timeout": YEARS, "min_rate": 5e-324}
    with serving(handler, max_connections=1, when_full=YEARS, **limits) as server:
        with client(server) as first, client(server) as second:
            assert answers(first)
            second.sendall(b"x")
            assert is_silent(second)
            first.close()
            assert receive_exactly(second, 1) == b"x"


def test_when_it_is_full_the_next_client_may_be_held_for_a_while() -> None:
    options = {"max_connections": 1, "when_full": 0.2, "refusal": "full"}
    with serving(netkit.EchoHandler, **options) as server, client(server) as first:
        assert answers(first)
        with client(server) as second:
            assert receive_all(second) == b"full"
        server.configure(when_full=60.0)
        with client(server) as third, client(server) as fourth:
            wait_until(lambda: len(server._overflow.held) == 2)
            server.configure(when_full=0.0)
            with client(server) as fifth:
                assert receive_all(fifth) == b"full"
            first.close()
            assert answers(third)
            third.close()
            assert answers(fourth)


def test_a_held_client_may_be_gone_when_there_is_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another thread closes the server just then."""
    with serving(echo, max_connections=1, when_full=60.0) as server:
        enter = server._admission.enter

        def enter_late() -> bool:
            entered = enter()
            if entered:
                for held in server._overflow.close():
                    held.request.close()
            return entered

        with client(server) as first, client(server) as second:
            assert answers(first)
            wait_until(lambda: server._overflow.held)
            monkeypatch.setattr(server._admission, "enter", enter_late)
            first.close()
            assert receive_all(second) == b""
        monkeypatch.undo()
        assert exchange(server, b"x") == b"x"


@pytest.mark.parametrize("when", ["wait", 60.0])
def test_a_stop_serves_a_client_that_waits_for_a_place_once_there_is_one(when: Any) -> None:
    with serving(echo, max_connections=1, when_full=when) as server:
        with client(server) as first, client(server) as second:
            assert answers(first)
            second.sendall(b"late")
            wait_until(lambda: when == "wait" or server._overflow.held)
            with in_thread(server.stop):
                assert receive_all(first) == b""
                first.close()
                assert receive_all(second) == b"late"


def test_a_held_client_sees_the_end_when_the_server_is_closed() -> None:
    with serving(netkit.EchoHandler, max_connections=0, when_full=60.0) as server:
        with client(server) as sock:
            wait_until(lambda: server._overflow.held)
            server.close()
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(sock) == b""


def test_a_suspended_server_that_stops_does_not_serve_queued_clients() -> None:
    with serving(netkit.EchoHandler) as server:
        server.suspend()
        with client(server):
            assert server.stop() == (0, 0)


def test_the_limit_is_exact_if_many_clients_come_at_once() -> None:
    most = []
    lock = threading.Lock()
    inside = 0

    def handler(conn: netkit.Connection) -> None:
        nonlocal inside
        with lock:
            inside += 1
            most.append(inside)
        conn.write(conn.read(1))
        with lock:
            inside -= 1

    with serving(handler, max_connections=3) as server:

        def come() -> None:
            for _ in range(20):
                assert exchange(server, b"x") == b"x"

        in_threads(come, [()] * 8)
    assert max(most) <= 3
    assert len(most) == 160


def test_a_new_limit_counts_at_once_and_connected_clients_stay() -> None:
    with serving(netkit.EchoHandler, max_connections=1) as server:
        with client(server) as first, client(server) as second:
            assert answers(first)
            server.configure(max_connections=2)
            assert answers(second)
            server.configure(max_connections=1)
            assert answers(first)
            assert answers(second)
        with pytest.raises(ValueError, match="max_connections must be 0 or more"):
            server.configure(max_connections=-1)
        with pytest.raises(TypeError, match="unknown option 'max'"):
            server.configure(max=1)
        server.configure(max_connections=None)
        assert exchange(server, b"x") == b"x"


def test_a_suspended_server_accepts_no_client_until_it_is_resumed() -> None:
    with serving(netkit.EchoHandler, max_connections=5, when_full="refuse") as server:
        with client(server) as first:
            assert answers(first)
            server.suspend()
            with client(server) as second:
                second.sendall(b"x")
                assert is_silent(second)
                assert answers(first)
                server.resume()
                assert receive_exactly(second, 1) == b"x"


def test_a_place_that_becomes_free_just_after_the_look_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = SharedPlaces(1)
    server = netkit.create_server(echo, max_connections=1)
    server.share_places(places)
    enter, failures = server._admission.enter, []

    def enter_too_early() -> bool:
        entered = enter()
        if not (entered or failures):
            failures.append(1)
            places.give_back()  # as another process does
        return entered

    monkeypatch.setattr(server._admission, "enter", enter_too_early)
    monkeypatch.setattr(server._admission, "must_wait", lambda: False)  # as just before that
    assert places.take()
    with contextlib.closing(places), server.listen(0, "127.0.0.1"):
        with client(server) as sock:
            assert answers(sock)
        server.stop()
    assert (failures, server.refused_count) == ([1], 0)


def counting_waits(server: netkit.Server) -> list[Any]:
    """The arguments of each wait for a client that `server` begins from now on."""
    waits: list[Any] = []
    step = server._acceptor.step
    server._acceptor.step = lambda *args: (waits.append(args), step(*args))[1]  # type: ignore[func-returns-value,method-assign]
    return waits


def test_a_suspended_server_that_shares_places_waits_without_looking_at_them() -> None:
    server = netkit.create_server(netkit.EchoHandler, max_connections=1)
    waits = counting_waits(server)
    with contextlib.closing(SharedPlaces(1)) as places, server.listen(0, "127.0.0.1"):
        server.share_places(places)
        server.suspend()
        with client(server) as sock:
            sock.sendall(b"x")
            assert is_silent(sock)
            assert len(waits) <= 5
            server.resume()
            assert receive_exactly(sock, 1) == b"x"
        server.stop()


@pytest.mark.parametrize("when", ["wait", 60.0])
def test_handle_request_keeps_the_limits(when: Any) -> None:
    with netkit.Server(("127.0.0.1", 0), echo, max_connections=1, when_full=when) as server:
        waits = counting_waits(server)
        with client(server) as first, client(server) as second:
            second.sendall(b"x")
            server.handle_request()
            assert answers(first)
            server.timeout = 0.2
            server.handle_request()
            assert server.connection_count == 1
            assert len(waits) <= 5
            first.close()
            server.wait_for_connections(0)
            server.timeout = None if when == "wait" else 0.2
            server.handle_request()
            assert receive_exactly(second, 1) == b"x"


def test_a_program_can_wait_for_connections() -> None:
    with serving(netkit.EchoHandler) as server:
        assert server.wait_for_connections(0)
        assert not server.wait_for_connections(1, timeout=0.01)
        results: list[bool] = []
        with in_thread(lambda: results.append(server.wait_for_connections(2, PATIENCE))):
            with client(server), client(server):
                wait_until(lambda: results == [True])
        assert server.wait_for_connections(0, PATIENCE)
        for count, timeout, text in [
            (-1, None, "count must be 0 or more connections, not -1"),
            (1, float("nan"), "timeout must be 0 or more seconds, not nan"),
            (1, 1e12, "timeout must be at most"),
        ]:
            with pytest.raises(ValueError, match=text):
                server.wait_for_connections(count, timeout)


# The places of connections that are being closed


class Lines(netkit.Handler):
    def handle(self) -> None:
        while line := self.conn.readline():
            self.conn.write(line)


class BareLines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while line := self.rfile.readline():
            self.wfile.write(line)


def lines(conn: netkit.Connection) -> None:
    for line in conn.lines():
        conn.write(line)


def one_line(conn: netkit.Connection) -> None:
    with conn:
        conn.write(conn.readline())


def too_early(conn: netkit.Connection) -> None:
    with conn.corked():
        conn.write(b"x" * 60_000)
    raise OSError("of the handler")


CLOSING = {
    "silent": (lines, b"", {"idle_timeout": 0.1}),
    "silent, Handler": (Lines, b"", {"idle_timeout": 0.1}),
    "silent, socketserver": (BareLines, b"", {"idle_timeout": 0.1}),
    "half a line": (lines, b"x", {"read_timeout": 0.1}),
    "old": (lines, b"", {"lifetime": 0.1}),
    "a line that is too long": (lines, b"x" * 200_000, {"max_line": 100}),
    "answered": (one_line, b"x\n", {}),
    "the handler raises": (too_early, b"", {}),
    "TLS, silent": (lines, b"", {"handshake_timeout": 0.1, "tls": True}),
    "TLS, half a hello": (lines, b"\x16\x03\x01\x02", {"handshake_timeout": 0.1, "tls": True}),
    "TLS, plain text": (lines, b"GET / HTTP/1.1\r\n\r\n", {"tls": True}),
}


LIMITS = ["max_connections", "max_connections_per_ip", "shared"]
# Each kind of close meets one of the limits, and two of them meet all.
SAMPLE = [*zip(CLOSING, itertools.cycle(LIMITS))]
SAMPLE += [(case, limit) for case in ("answered", "TLS, silent") for limit in LIMITS]


@pytest.mark.parametrize(("case", "limit"), sorted(set(SAMPLE)))
def test_a_place_is_free_as_soon_as_its_connection_begins_to_close(
    case: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netkit.net.connection.Connection.linger_seconds", 1000.0)
    handler, data, limits = CLOSING[case]
    options: dict[str, Any] = {**limits, limit: 1}
    if "tls" in limits:
        options["tls"] = contexts()[0]
    with contextlib.ExitStack() as stack:
        if options.pop("shared", None):
            places = SharedPlaces(1)
            stack.callback(places.close)
        server = stack.enter_context(serving(handler, drain_timeout=0, **options))
        if limit == "shared":
            server.share_places(places)
        served = stack.enter_context(observed(events.ConnectionOpened))
        for number in range(1, 4):  # each stays connected and says no more
            sock = stack.enter_context(client(server))
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            wait_until(lambda number=number: len(served) == number, "a place")
            if limit == "max_connections_per_ip":  # a client that comes too early is refused
                wait_until(lambda: not server._admission._of_network, "a share")


@pytest.mark.parametrize("handler", [one_line, Lines])
def test_too_many_closes_at_a_time_end_the_oldest_one(
    handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netkit.net.connection.Connection.linger_seconds", 1000.0)
    options: dict[str, Any] = {"max_connections": 1, "max_line": 100, "drain_timeout": 0}
    with observed(events.ConnectionClosed) as closed, contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(handler, **options))
        server._admission.max_lingering = 2
        peers = []
        for number in range(5):
            sock = stack.enter_context(client(server))
            peers.append("{}:{}".format(*sock.getsockname()))
            sock.sendall(b"x\n" if handler is one_line else b"x\n" + b"x" * 200)
            wait_until(lambda number=number: len(closed) >= number - 2)
            wait_until(lambda: not server._admission._taken)
        wait_until(lambda: len(closed) == 3)
        # Each thread ends its own connection, so the order of two ends is not fixed.
        assert {event.peer for event in closed} == set(peers[:3])
        assert server.connection_count == 2
        assert server._admission.enter()


def test_a_handler_that_works_on_after_the_close_of_its_connection_is_counted() -> None:
    go_on, at_work = threading.Event(), []

    def works_on(conn: netkit.Connection) -> None:
        conn.close()
        at_work.append(conn)
        go_on.wait()

    with serving(works_on, max_connections=1) as server, contextlib.ExitStack() as stack:
        server._admission.max_lingering = 1
        stack.callback(go_on.set)
        for _ in range(3):
            stack.enter_context(client(server)).shutdown(socket.SHUT_WR)
        wait_until(lambda: len(at_work) == 2)
        assert not server._admission.enter()
        go_on.set()
        wait_until(lambda: len(at_work) == 3)


# Addresses


@each_echo
def test_a_denied_client_is_refused_before_it_costs_a_thread(handler: Any) -> None:
    with observed(events.Refusing, events.Refused, events.Stopped) as seen:
        with serving(handler, deny="127.0.0.0/8", refusal="no") as server:
            for _ in range(3):
                assert input_of_client(server) == b""
            assert server._threads == []
            assert server.refused_count == 3
        server.configure(deny=None)
        with server.listen(0, "127.0.0.1"):
            assert exchange(server, b"x") == b"x"
    kinds = [events.Refusing, events.Refused, events.Stopped, events.Stopped]
    assert [type(event) for event in seen] == kinds
    assert (seen[1].reason, seen[1].clients) == ("deny", 3)


def test_a_client_that_cannot_be_registered_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(netkit.EchoHandler, max_connections=1, drain_timeout=0.5) as server:
        assert exchange(server, b"x") == b"x"
        failed = threading.Event()

        def fail(*arguments: Any) -> Any:
            if failed.is_set():
                return netkit.Connection(*arguments)
            failed.set()
            raise MemoryError

        monkeypatch.setattr("netkit.server.registrar.Connection", fail)
        with contextlib.suppress(ConnectionResetError), client(server) as sock:
            assert receive_all(sock) == b""
        assert exchange(server, b"x") == b"x"


def test_an_interrupt_in_an_accept_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    with netkit.Server(("127.0.0.1", 0), echo, max_connections=1) as server:
        with client(server) as sock:
            monkeypatch.setattr(server, "get_request", interrupt)
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            monkeypatch.undo()
            server.handle_request()
            assert answers(sock)


def test_an_observer_that_is_interrupted_in_an_accept_leaves_no_client_and_no_place() -> None:
    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.ConnectionOpened):
            raise KeyboardInterrupt

    with netkit.Server(("127.0.0.1", 0), echo, max_connections=1) as server:
        unsubscribe = events.subscribe(interrupt)
        with client(server) as sock:
            with pytest.raises(KeyboardInterrupt):
                server.handle_request()
            unsubscribe()
            assert receive_all(sock) == b""
        assert server.connection_count == 0
        with client(server) as sock:
            server.handle_request()
            assert answers(sock)


def test_a_denied_client_is_not_held() -> None:
    options = {"max_connections": 0, "when_full": 60.0, "deny": ["127.0.0.1"]}
    with serving(netkit.EchoHandler, **options) as server:
        assert input_of_client(server) == b""


def test_an_address_has_a_limited_number_of_connections() -> None:
    options = {"max_connections_per_ip": 2, "refusal": "enough"}
    with serving(netkit.EchoHandler, **options) as server:
        with client(server) as first, client(server) as second:
            assert answers(first)
            assert answers(second)
            with client(server) as third:
                assert receive_all(third) == b"enough"
            with socket.socket() as elsewhere:
                elsewhere.settimeout(PATIENCE)
                elsewhere.bind(("127.0.0.2", 0))
                elsewhere.connect(server.server_address)
                assert answers(elsewhere)
            first.close()
            wait_until(lambda: exchange(server, b"x") == b"x", "a free place")


def test_an_address_connects_a_limited_number_of_times_a_second() -> None:
    with serving(netkit.EchoHandler, max_connection_rate=2, refusal="slowly") as server:
        assert [exchange(server, b"x") for _ in range(3)] == [b"x", b"x", b"slowly"]


# The command line, and worker processes

SCRIPT = """
import multiprocessing, sys, netkit
from netkit import logs
if __name__ == "__main__":
    multiprocessing.set_start_method(METHOD)
    netkit.configure_logging()
    server = netkit.create_server(netkit.EchoHandler, max_connections=2, WHEN)
    netkit.run(server.listen(0, "127.0.0.1"), workers=3)
"""


@contextlib.contextmanager
def program(*command: Any, cwd: Any = ROOT) -> Iterator[Program]:
    with Program(sys.executable, *command, cwd=cwd) as running:
        yield running
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0


@pytest.mark.parametrize(("method", "when"), [("spawn", ""), ("fork", "when_full=60.0")])
def test_the_limit_is_one_for_all_workers(tmp_path: Path, method: str, when: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("METHOD", repr(method)).replace("WHEN", when))
    with program(str(script)) as running:
        running.wait_for_line("3 workers ready")
        for _ in range(3):
            with running.connect() as first, running.connect() as second:
                assert answers(first)
                assert answers(second)
                with running.connect() as third:
                    third.sendall(b"x")
                    assert is_silent(third)
                    first.close()
                    assert receive_exactly(third, 1) == b"x"
                    second.close()
                    with running.connect() as fourth:
                        assert answers(fourth)


def test_the_places_of_a_killed_worker_are_free_again(tmp_path: Path) -> None:
    module = tmp_path / "app.py"
    module.write_text("import os\ndef pid(conn): conn.write(f'{os.getpid()}\\n'); conn.read()\n")
    command = ["-m", "netkit", "serve", "app:pid", "--workers", "2", "--max-connections", "1"]
    with program(*command, cwd=tmp_path) as running:
        running.wait_for_line("2 workers ready")
        with running.connect() as first, running.connect() as second:
            os.kill(int(first.makefile().readline()), signal.SIGKILL)
            assert int(second.makefile().readline())


def is_served(running: Program) -> bool:
    """False if an old worker, which ends, has accepted the client."""
    with contextlib.suppress(ConnectionResetError, AssertionError), running.connect() as sock:
        return answers(sock)
    return False


@pytest.mark.parametrize(
    ("workers", "line"), [("1", "the list 'deny' reloaded: 1 rule "), ("2", "reloaded: 2")]
)
def test_a_list_is_read_again_on_sighup_with_workers_or_without(
    workers: str, line: str, tmp_path: Path
) -> None:
    path = tmp_path / "deny"
    path.write_text("127.0.0.0/8\n")
    command = ["-m", "netkit", "echo", "--deny", f"@{path}", "--workers", workers]
    with program(*command) as running:
        if workers == "2":
            running.wait_for_line("2 workers ready")
        with running.connect() as sock:
            assert receive_all(sock) == b""
        path.write_text("10.0.0.0/8\n")
        running.send_signal(signal.SIGHUP)
        running.wait_for_line(line)
        wait_until(lambda: is_served(running))


def test_the_command_line_refuses_with_a_line() -> None:
    options = ["--max-connections", "0", "--when-full", "refuse", "--refusal", "full"]
    with program("-m", "netkit", "echo", *options) as running, running.connect() as sock:
        assert receive_all(sock) == b"full\n"
        running.wait_for_line("max_connections: refusing clients, 127.0.0.1")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--when-full", "drop", "it must be 'wait', 'refuse' or a number of seconds, not 'drop'"),
        ("--deny", "@/nowhere", "--deny: No such file or directory: '/nowhere'"),
        ("--allow", "300.0.0.1", "--allow: not an IP address: '300.0.0.1'"),
        ("--max-connections", "many", "it must be a number or 'off', not 'many'"),
    ],
)
def test_an_invalid_limit_is_an_error_of_one_line(
    option: str, value: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["echo", option, value])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert text in told
    assert told.count("\n") == 1
