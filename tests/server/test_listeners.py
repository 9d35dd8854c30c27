"""What a server can listen on, how it says where, and what becomes of it in the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from support import (
    PATIENCE,
    Cli,
    Program,
    in_thread,
    needs_ipv6,
    observed,
    receive_all,
    receive_exactly,
    send_and_end,
    serving_forever,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.endpoint import Endpoint

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux has it")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the path of a socket may have 107 bytes only
    return tmp_path


def echo() -> netkit.Server:
    return netkit.create_server(netkit.EchoHandler)


def connected(where: Any) -> socket.socket:
    """A plain socket connected to an address of a server, with a time limit."""
    if isinstance(where, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(where)
        return sock
    return socket.create_connection(where[:2], PATIENCE)


def ask(where: Any, data: bytes = b"hello") -> bytes:
    with connected(where) as sock:
        send_and_end(sock, data)
        return receive_all(sock)


def leave_dead(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


# Unix sockets


@needs_unix
def test_a_unix_socket_is_served_and_its_file_goes_when_the_server_stops() -> None:
    with observed(events.Listening, events.ConnectionOpened) as seen:
        with echo().listen(path=Path("x.sock"), mode=0o600) as server:
            assert (server.address, server.addresses) == ("x.sock", ("x.sock",))
            assert stat.S_IMODE(os.stat("x.sock").st_mode) == 0o600
            assert ask("x.sock") == b"hello"
        assert not os.path.exists("x.sock")
    assert seen[0] == events.Listening("unix:x.sock")
    assert seen[1].peer == "unix"
    assert server.addresses == ()


@needs_unix
def test_a_dead_servers_socket_is_replaced_and_a_live_ones_refused() -> None:
    leave_dead("x.sock")
    text = "cannot listen on x.sock: another server listens there (EADDRINUSE)"
    with echo().listen(path="x.sock"):
        other = echo()
        with pytest.raises(OSError, match="^") as caught:
            other.listen(path="x.sock")
        error: Any = caught.value
        assert (error.strerror, error.address, error.port) == (text, "x.sock", None)
        assert (other.listening, other.address, other.addresses) == (False, None, ())
        assert ask("x.sock") == b"hello"
        with other.listen(path="y.sock"):
            assert ask("y.sock") == b"hello"


@needs_unix
def test_a_successor_may_start_while_clients_are_still_served() -> None:
    with echo().listen(path="x.sock") as server, connected("x.sock") as busy:
        busy.sendall(b"a")
        assert receive_exactly(busy, 1) == b"a"
        with in_thread(server.stop, 60, 60):
            wait_until(lambda: not os.path.exists("x.sock"))
            with echo().listen(path="x.sock"):
                assert ask("x.sock") == b"hello"
            busy.sendall(b"b")
            assert receive_exactly(busy, 1) == b"b"
            busy.close()


@needs_unix
def test_a_socket_that_another_server_takes_before_it_listens_is_given_up() -> None:
    class LosesItsName(netkit.Server):
        def server_activate(self) -> None:
            os.unlink("x.sock")
            leave_dead("x.sock")
            super().server_activate()

    server = LosesItsName(None, netkit.EchoHandler)
    with pytest.raises(OSError, match="/x.sock: another program has just taken it"):
        server.listen(path="x.sock")
    assert os.path.exists("x.sock")


@linux
def test_an_abstract_name_is_served() -> None:
    name = f"netkit-{os.getpid()}"
    with observed(events.Listening) as seen:
        with echo().listen_on(f"@{name}") as server:
            assert server.address == f"\0{name}"
            assert ask(server.address) == b"hello"
            with pytest.raises(OSError, match=f"@{name}: another server listens there"):
                echo().listen(path=f"\0{name}")
            with pytest.raises(netkit.ServerStateError, match=f"serving already, on @{name}$"):
                server.start()
            with pytest.raises(netkit.ServerStateError, match=f"is listening on @{name}$"):
                server.listen()
    assert seen == [events.Listening(f"@{name}")]


@linux
def test_a_handler_sees_the_credentials_of_its_peer() -> None:
    known: list[Any] = []

    def handler(conn: netkit.Connection) -> None:
        known.append(conn.peer_credentials)
        conn.set_no_delay()
        conn.set_keep_alive()
        conn.end(conn.read())
        with pytest.raises(OSError, match=r"a Unix socket cannot be reset \(unix\)"):
            conn.reset()
        conn.close()
        with pytest.raises(netkit.ConnectionClosedError):
            conn.peer_credentials  # noqa: B018

    with observed(events.HandlerFailed) as failures:
        with netkit.create_server(handler).listen(path="x.sock"):
            assert ask("x.sock") == b"hello"
    assert known == [(os.getpid(), os.getuid(), os.getgid())]
    assert not failures


@needs_unix
def test_a_client_that_has_bound_a_path_is_shown_by_it() -> None:
    with netkit.create_server(lambda conn: conn.end(conn.peer)).listen(path="x.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("client")
            sock.connect("x.sock")
            assert receive_all(sock) == b"unix:client"


@needs_unix
def test_a_unix_client_is_greeted_without_an_address_and_refused_without_one() -> None:
    options: dict[str, Any] = {"max_connections": 0, "when_full": "refuse"}
    with netkit.create_server(netkit.GreeterHandler).listen(path="x.sock"):
        assert ask("x.sock").startswith(b"Hello, unix!\n")
    with silent_log(), observed(events.ClientRefused) as seen:
        with netkit.create_server(netkit.GreeterHandler, **options).listen(path="x.sock"):
            assert ask("x.sock", b"") == b""
    assert seen == [events.ClientRefused("unix", "max_connections", None, None)]


# Descriptors and sockets


@pytest.mark.parametrize("listening", [True, False])
def test_an_inherited_descriptor_is_served_whether_it_listens_already_or_not(
    listening: bool,
) -> None:
    opened = socket.socket()
    opened.bind(("127.0.0.1", 0))
    if listening:
        opened.listen(5)
    opened.set_inheritable(True)
    address, fd = opened.getsockname(), opened.detach()
    with echo().listen(fd=fd) as server:
        assert server.server_address == address
        assert not os.get_inheritable(fd)
        assert ask(address) == b"hello"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_socket_that_a_server_takes_over_is_not_inherited_and_closed_in_the_end() -> None:
    opened = socket.create_server(("127.0.0.1", 0))
    opened.set_inheritable(True)
    with echo().listen(sock=opened) as server:
        assert server.server_address == opened.getsockname()
        assert not opened.get_inheritable()
    assert opened.fileno() == -1


@needs_unix
def test_the_file_of_an_inherited_unix_socket_is_not_removed() -> None:
    opened = socket.socket(socket.AF_UNIX)
    opened.bind("x.sock")
    opened.listen()
    with echo().listen_on(f"fd:{opened.detach()}") as server:
        assert server.address == "x.sock"
        assert ask("x.sock") == b"hello"
    assert os.path.exists("x.sock")


@pytest.mark.parametrize(("given", "expected"), [(None, []), (7, [7])])
def test_the_queue_of_one_that_listens_stays_as_it_is_unless_another_is_wanted(
    given: int | None, expected: list[int]
) -> None:
    class Listener(socket.socket):
        calls: list[int] = []  # noqa: RUF012

        def listen(self, backlog: int = -1) -> None:
            self.calls.append(backlog)

    opened = Listener()
    opened.bind(("127.0.0.1", 0))
    socket.socket.listen(opened, 5)
    Listener.calls.clear()
    server = echo().listen(sock=opened, backlog=given)
    server.close()
    assert Listener.calls == expected


def test_an_error_says_why_a_descriptor_is_no_listener() -> None:
    with open(os.devnull) as file, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for fd, text in (
            (file.fileno(), "it is not a socket (ENOTSOCK)"),
            (9999, "the descriptor is not open (EBADF)"),
            (datagrams.fileno(), "it is not a stream socket (EINVAL)"),
        ):
            server = echo()
            with pytest.raises(OSError, match="^") as caught:
                server.listen(fd=fd)
            assert caught.value.strerror == f"cannot listen on fd:{fd}: {text}"
            assert server.address is None
        datagrams.getsockname()  # it is still open


def test_a_connected_socket_cannot_be_listened_on() -> None:
    text = r"^.*cannot listen on 127.0.0.1:\d+: invalid argument \(EINVAL\)$"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        with pytest.raises(OSError, match=text):
            echo().listen(sock=sock)
        assert sock.fileno() == -1


def test_a_hook_that_fails_closes_the_socket_it_was_given() -> None:
    class Unwilling(netkit.Server):
        def server_activate(self) -> None:
            raise RuntimeError("no")

    sock = socket.socket()
    with pytest.raises(RuntimeError, match="^no$"):
        Unwilling(None, netkit.EchoHandler).listen(sock=sock)
    assert sock.fileno() == -1


@pytest.mark.parametrize("other", [{"port": 80}, {"reuse_port": True}])
def test_a_socket_goes_with_no_other_address(other: dict[str, Any]) -> None:
    with socket.socket() as sock:
        with pytest.raises(
            TypeError, match="only backlog, exclusive, proxy and tls may go with it"
        ):
            echo().listen(sock=sock, **other)


# Several


@needs_unix
def test_each_of_several_addresses_is_served_and_has_an_event() -> None:
    facts: list[Any] = []

    def handler(conn: netkit.Connection) -> None:
        facts.append((conn.peer.partition(":")[0], conn.local_address, conn.local_port))
        conn.end(conn.read())

    with observed(events.Listening) as seen:
        server = netkit.create_server(handler)
        with server.listen_on("127.0.0.1:0", "unix:x.sock?mode=600", "127.0.0.1:0"):
            first, path, second = server.addresses
            assert server.address == first
            assert server.socket.getsockname() == first[:2]
            assert path == "x.sock"
            for where in server.addresses * 2:
                assert ask(where) == b"hello"
    assert facts[:3] == [
        ("127.0.0.1", *first[:2]),
        ("unix", None, None),
        ("127.0.0.1", *second[:2]),
    ]
    assert [event.address for event in seen] == [str(first), "unix:x.sock", str(second)]
    assert not os.path.exists("x.sock")
    for where in (first, second):
        with pytest.raises(ConnectionRefusedError):
            ask(where)


def test_an_address_may_be_a_number_and_there_must_be_one() -> None:
    with echo().listen_on(0, Endpoint("tcp", "127.0.0.1", 0)) as server:
        for where in server.addresses:
            assert isinstance(where, netkit.SocketAddress)
            assert ask(("127.0.0.1", where.port)) == b"hello"
    with pytest.raises(TypeError, match=r"^listen_on\(\) needs at least one address$"):
        echo().listen_on()


def test_a_descriptor_is_listened_on_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        other = os.dup(opened.fileno())
        server = echo()
        with pytest.raises(ValueError, match=f"fd:{other} cannot be listened on twice"):
            server.listen_on(f"fd:{other}", 0, f"fd:{other}")
        assert not server.listening
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.close(other)  # it was the server's
        connected(opened.getsockname()).close()


@pytest.mark.parametrize("bad", ["127.0.0.1:{port}", "no.such.host.invalid:80", "fd:9999"])
def test_if_one_address_cannot_be_bound_the_server_listens_on_none(bad: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = bad.format(port=taken.getsockname()[1])
        server = echo()
        with observed(events.Listening) as seen:
            with pytest.raises(OSError, match="^.*cannot listen on "):
                server.listen_on("unix:x.sock", "127.0.0.1:0", bad, "127.0.0.1:0")
            assert seen == []
            assert not os.path.exists("x.sock")
            assert (server.listening, server.addresses) == (False, ())
            with server.listen_on("127.0.0.1:0", "unix:x.sock"):
                assert ask("x.sock") == b"hello"
                assert [event.address for event in seen] == [str(server.address), "unix:x.sock"]


def test_a_server_that_was_stopped_says_why_it_cannot_listen_again() -> None:
    server = echo().listen(0, "127.0.0.1")
    server.stop()
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot listen on fd:9999: .*EBADF"):
            server.listen(fd=9999)
        with pytest.raises(netkit.ServerStateError, match="closed"):
            server.start()
    with server.listen(0, "127.0.0.1"):
        assert ask(server.server_address) == b"hello"


@pytest.mark.parametrize(
    ("hook", "after", "at", "in_another_thread"),
    [
        ("server_bind", False, 1, False),
        ("server_bind", True, 2, False),
        ("server_activate", True, 1, False),
        ("server_activate", False, 2, True),
    ],
)
def test_a_server_that_is_stopped_before_it_listens_everywhere_has_no_listener(
    hook: str, after: bool, at: int, in_another_thread: bool
) -> None:
    opened: list[socket.socket] = []

    def stop_when_called(self: netkit.Server) -> None:
        opened.append(self.socket)
        if after:
            getattr(netkit.Server, hook)(self)
        if len(opened) == at:
            if in_another_thread:
                with in_thread(self.stop, 0):
                    pass
            else:  # as a signal handler does
                self.stop(0)
        if not after:
            getattr(netkit.Server, hook)(self)

    server = type("Server", (netkit.Server,), {hook: stop_when_called})(None, netkit.EchoHandler)
    server._drain.grace = 0.01  # `listen` waits for the stop
    with pytest.raises(netkit.ServerStateError, match="stopped before it listened everywhere"):
        server.listen_on("127.0.0.1:0", "127.0.0.1:0")
    assert {sock.fileno() for sock in opened} == {-1}
    assert not server.listening


def test_a_stop_in_another_thread_waits_until_listen_has_returned() -> None:
    with contextlib.ExitStack() as stack:

        class Server(netkit.Server):
            def server_bind(self) -> None:
                super().server_bind()
                stack.enter_context(in_thread(self.stop))
                wait_until(lambda: self._life.changed._waiters)  # type: ignore[attr-defined]

        server = Server(None, netkit.EchoHandler)
        server._drain.grace = PATIENCE
        server.listen(0, "127.0.0.1")
    assert not server.listening
    assert server.socket.fileno() == -1


def test_of_two_threads_that_call_listen_one_gets_an_error() -> None:
    class Server(netkit.Server):
        def server_bind(self) -> None:
            with pytest.raises(netkit.ServerStateError, match="has not returned yet"):
                with in_thread(self.listen):
                    pass
            super().server_bind()

    with Server(None, netkit.EchoHandler).listen(0, "127.0.0.1") as server:
        assert ask(server.address) == b"hello"


def test_a_listener_of_several_is_not_kept_waiting_by_a_busy_one() -> None:
    server = echo().listen_on("127.0.0.1:0", "127.0.0.1:0")
    first, second = server.addresses
    with contextlib.ExitStack() as stack:
        for where in (first, first, first, second):
            stack.enter_context(connected(where))
        for listener in server._listeners.sockets:
            listener.setblocking(False)
        local = []
        for _ in range(3):
            request, _ = server.get_request()
            local.append(request.getsockname()[1])
            request.close()
        server.close()
    assert second[1] in local[:2]


def test_clients_queued_at_any_listener_are_served_by_a_stop() -> None:
    server = netkit.create_server(lambda conn: conn.end("served"))
    server.listen_on("127.0.0.1:0", "127.0.0.1:0")
    server.start()
    server.shutdown()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(where)) for where in server.addresses * 3]
        with in_thread(server.stop):
            assert [receive_all(sock) for sock in clients] == [b"served"] * 6
            stack.close()


def test_the_loss_of_one_listener_ends_the_loop() -> None:
    with silent_log(), socket.create_server(("127.0.0.1", 0)) as second:
        server = echo().listen_on("127.0.0.1:0", f"fd:{os.dup(second.fileno())}")
        with observed(events.ListenerLost) as lost, serving_forever(server) as thread:
            assert ask(server.address) == b"hello"
            second.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            assert not thread.is_alive()
            assert len(lost) == 1


# TCP


@needs_ipv6
def test_ipv6_only_keeps_ipv4_out_whatever_the_host() -> None:
    with echo().listen(0, "0.0.0.0") as other:
        port = other.server_address[1]
        with echo().listen_on(f"[::]:{port}?ipv6_only=on") as server:
            assert server.address == ("::", port, "IPv6")
            assert ask(("127.0.0.1", port)) == b"hello"
    with echo().listen(ipv6_only=True) as server:
        port = server.server_address[1]
        assert ask(("::1", port)) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            ask(("127.0.0.1", port))
    with pytest.raises(ValueError, match="^ipv6_only, but '127.0.0.1' has no IPv6 address$"):
        echo().listen(0, "127.0.0.1", ipv6_only=True)


@needs_ipv6
def test_an_ipv4_client_of_an_ipv6_listener_is_shown_counted_and_refused_as_ipv4() -> None:
    options = {"max_connections_per_ip": 1, "when_full": "refuse"}
    facts: list[Any] = []

    def handler(conn: netkit.Connection) -> None:
        facts.append((conn.remote_address, conn.remote_family))
        facts.append((conn.local_address, conn.local_family))
        conn.write("in")
        conn.read()

    with netkit.create_server(handler, **options).listen() as server, silent_log():
        port = server.server_address[1]
        with observed(events.ClientRefused, events.ConnectionOpened) as seen:
            with connected(("127.0.0.1", port)) as first:
                assert receive_exactly(first, 2) == b"in"
                with connected(("127.0.0.1", port)) as second:
                    assert receive_all(second) == b""
                    mine = second.getsockname()[1]
    assert facts == [("127.0.0.1", "IPv4")] * 2
    opened, refused = seen
    assert opened.peer.startswith("127.0.0.1:")
    client, local = (netkit.SocketAddress("127.0.0.1", each, "IPv4") for each in (mine, port))
    assert refused == events.ClientRefused(str(client), "max_connections_per_ip", client, local)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="not everywhere")
def test_a_port_is_shared_with_servers_that_have_reuse_port() -> None:
    with echo().listen(0, "127.0.0.1", reuse_port=True) as server:
        port = server.server_address[1]
        with echo().listen_on(f"127.0.0.1:{port}?reuse_port=on"):
            pass
        with pytest.raises(OSError, match="EADDRINUSE"):
            echo().listen(port, "127.0.0.1")
        assert not server.allow_reuse_port


def test_an_exclusive_listener_is_not_for_workers() -> None:
    server = echo().listen(0, "127.0.0.1", exclusive=True)
    with pytest.raises(netkit.ServerStateError, match="the server listens exclusively: workers"):
        netkit.run(server, workers=2)
    server.close()
    server.listen_on("127.0.0.1:0", exclusive=True)
    server.close()


def test_an_error_names_the_order_of_port_and_host() -> None:
    with pytest.raises(ValueError, match="; the port comes first, and then the host$"):
        echo().listen("127.0.0.1", 8080)  # type: ignore[arg-type]


# Worker processes and programs

PROGRAM = """
import logging, os, netkit
logging.basicConfig(level="INFO", format="%(message)s")

def tell_process(conn):
    conn.end(f"{os.getpid()}")

if __name__ == "__main__":
    import multiprocessing
    multiprocessing.set_start_method(METHOD)
    server = netkit.create_server(tell_process).listen_on("unix:x.sock?mode=600", "127.0.0.1:0")
    netkit.run(server, workers=2)
"""


@needs_unix
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_all_listeners_and_only_their_parent_removes_the_file(
    method: str, folder: Path
) -> None:
    (folder / "program.py").write_text(PROGRAM.replace("METHOD", repr(method)))
    with Program(sys.executable, "program.py", cwd=folder) as program:
        program.wait_for_line("2 workers ready")
        first = int(ask("x.sock"))
        assert first in program.children()
        assert int(ask(("127.0.0.1", program.port))) in program.children()
        os.kill(first, signal.SIGTERM)  # it ends gracefully, and leaves the file
        program.wait_for_line(f"worker {first} ended")
        assert int(ask("x.sock")) != first
        program.send_signal()
        assert program.wait() == 0
    assert not os.path.exists("x.sock")


@needs_unix
def test_the_command_line_listens_on_all_that_it_is_given(folder: Path) -> None:
    with Cli("echo", "0", "unix:x.sock", cwd=folder) as program:
        program.wait_for_line("listening on unix:x.sock")
        assert ask("x.sock") == b"hello"
        for address, error in [
            ("x.sock", "cannot listen on x.sock: another server listens there (EADDRINUSE)"),
            ("y.sock?owner=no-such-user", "owner 'no-such-user': "),
        ]:
            with Cli("echo", f"unix:{address}", cwd=folder, listening=False) as second:
                assert second.wait() == 1
                assert second.lines[0].startswith(f"netkit: error: {error}")
        program.send_signal()
        assert program.wait() == 0
    assert not os.path.exists("x.sock")
