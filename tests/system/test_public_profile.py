"""The profile for the Internet: its effect on a server, also under attack."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from goodclients import GoodClients, good_clients
from secure import contexts
from support import (
    PATIENCE,
    Cli,
    in_thread,
    observed,
    receive_exactly,
    serving,
    wait_until,
)

import netkit
from netkit.core import events
from netkit.core.options import public

PUBLIC = public()


def test_a_profile_that_is_set_later_sets_its_options() -> None:
    with serving(netkit.EchoHandler, idle_timeout=7, lifetime=8) as server:
        server.configure(profile="public", min_rate=3)
        now = server._options
        assert (now.idle_timeout, now.min_rate, now.lifetime) == (PUBLIC["idle_timeout"], 3, 8)
        server.configure(idle_timeout=9)
        assert server._options == now.changed(idle_timeout=9)


def test_the_command_line_takes_a_profile_and_options_beside_it() -> None:
    with Cli("echo", "--profile", "public", "--max-connections", "1", "--min-rate", "50") as cli:
        with cli.connect() as sock:
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
            with cli.connect() as second:
                second.sendall(b"y")
                cli.wait_for_line("max_connections: new clients wait")
        cli.send_signal()
        assert cli.wait() == 0


# A server that has no limit


def listened(*addresses: str, **options: Any) -> list[Any]:
    with observed(events.Unlimited) as emitted:
        server = netkit.create_server(netkit.EchoHandler, **options).listen_on(*addresses)
        where = str(server.address)
        server.close()
    return [event.address == where for event in emitted]


@pytest.mark.parametrize(
    ("addresses", "options", "times"),
    [
        (("0.0.0.0:0",), {}, 1),
        (("0.0.0.0:0", "0.0.0.0:0"), {}, 1),
        (("127.0.0.1:0",), {}, 0),
        (("127.0.0.5:0",), {}, 0),
        (("0.0.0.0:0",), {"profile": "public"}, 0),
        (("0.0.0.0:0",), {"idle_timeout": 5}, 0),
        (("0.0.0.0:0",), {"allow": ["10.0.0.0/8"]}, 0),
        (("0.0.0.0:0",), {"max_line": 100, "drain_timeout": 5}, 1),
    ],
)
def test_a_server_that_other_machines_reach_logs_once_that_it_has_no_limit(
    addresses: tuple[str, ...], options: dict[str, Any], times: int
) -> None:
    if sys.platform != "linux" and "127.0.0.5:0" in addresses:
        pytest.skip("it has one address on its loopback")
    assert listened(*addresses, **options) == [True] * times


def test_missing_limits_are_logged_each_time_but_never_for_a_unix_socket(
    tmp_path: Any,
) -> None:
    with observed(events.Unlimited) as emitted:
        server = netkit.create_server(netkit.EchoHandler)
        for _ in range(2):
            server.listen(0, "0.0.0.0").close()
        server.listen(path=tmp_path / "s").close()
        netkit.Server(("0.0.0.0", 0), netkit.EchoHandler).server_close()
    assert len(emitted) == 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_command_line_logs_missing_limits_once_even_with_workers(workers: str) -> None:
    with Cli("echo", "--host", "*", "--workers", workers) as cli:
        with cli.connect() as sock:
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
        cli.send_signal()
        assert cli.wait() == 0
    assert len([line for line in cli.lines if "--profile public" in line]) == 1


# Under attack. The profile's times are minutes: here they are about a second. The attackers
# come from addresses that the good clients do not have.

needs_loopback = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")

QUICK = {"idle_timeout": 1.0, "read_timeout": 1.6, "write_timeout": 1.0, "handshake_timeout": 1.0}


def open_from(address: str, server: netkit.Server) -> socket.socket:
    """A connection from `address` that is being made."""
    sock = socket.socket()
    with contextlib.suppress(BlockingIOError):
        sock.bind((address, 0))
        sock.setblocking(False)
        sock.connect(server.server_address)
    return sock


FEW = {"max_connections": 20, "max_connections_per_ip": 10, "max_connection_rate": None}


class Attackers:
    """`count` connections from `addresses` addresses; each one that ends is replaced."""

    def __init__(self, server: netkit.Server, count: int, addresses: int) -> None:
        self._server = server
        self._socks: dict[socket.socket, float] = {}
        self._count = count
        self._addresses = addresses
        self._over = threading.Event()
        self.came = self.ended = 0

    def _turn(self, said: bytes, reads: bool) -> None:
        while len(self._socks) < self._count:
            sock = open_from(f"127.0.1.{1 + self.came % self._addresses}", self._server)
            self._socks[sock] = 0.0
            self.came += 1
        poll = select.poll()
        for sock in self._socks:
            poll.register(sock, select.POLLIN if reads else 0)
        over = {descriptor for descriptor, _ in poll.poll(0)}
        for sock in list(self._socks):
            try:
                if sock.fileno() in over and not sock.recv(65536):
                    raise ConnectionResetError
                self._socks[sock] += sock.send(said) if said else 0
            except BlockingIOError:
                continue
            except OSError:
                self.ended += 1
                del self._socks[sock]
                sock.close()

    def run(self, said: bytes, reads: bool) -> None:
        while not self._over.wait(0.02):
            self._turn(said, reads)
        for sock in self._socks:
            sock.close()

    def stop(self) -> None:
        self._over.set()


@contextlib.contextmanager
def attacked(
    handler: Any, said: bytes, count: int = 30, addresses: int = 30, reads: bool = True, **more: Any
) -> Iterator[tuple[netkit.Server, Attackers, Callable[[], Any]]]:
    """A public server and `count` attackers, each of which sends `said` again and again."""
    options: dict[str, Any] = {"profile": "public", "drain_timeout": 0.2, **QUICK, **more}
    with serving(handler, **options) as server:
        attackers = Attackers(server, count, addresses)
        with in_thread(attackers.run, said, reads):
            try:
                wait_until(lambda: attackers.came >= count)
                yield (
                    server,
                    attackers,
                    functools.partial(socket.create_connection, server.server_address, PATIENCE),
                )
            finally:
                attackers.stop()


def go_on_until(good: GoodClients, attackers: Attackers, ended: int) -> None:
    """Serve the good clients until the server has ended so many of the attackers."""
    wait_until(lambda: attackers.ended >= ended or good.errors, f"the end of {ended} attackers")
    good.go_on()


def echo_lines(conn: netkit.Connection) -> None:
    while line := conn.readline():
        conn.write(line)


@needs_loopback
@pytest.mark.parametrize("said", [b"", b"x"], ids=["silent", "drip"])
def test_clients_that_never_finish_a_line_do_not_keep_good_ones_out(said: bytes) -> None:
    """More of them than there are places, from many addresses."""
    with attacked(echo_lines, said, **FEW) as (_, attackers, connect):
        with good_clients(connect, staying=2, returning=1) as good:
            go_on_until(good, attackers, 20)


@needs_loopback
def test_clients_that_do_not_read_do_not_keep_good_ones_out() -> None:
    def generous(conn: netkit.Connection) -> None:
        while line := conn.readline():
            conn.write(line if line.startswith(b"client") else b"y" * 4_000_000)

    with attacked(generous, b"x\n", reads=False, **FEW) as (_, attackers, connect):
        with good_clients(connect, staying=2, returning=1) as good:
            go_on_until(good, attackers, 20)


@needs_loopback
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "hello"])
def test_half_handshakes_do_not_keep_good_clients_out(said: bytes) -> None:
    server_context, client_context = contexts()
    more = {"tls": server_context, **FEW}
    with attacked(echo_lines, said, **more) as (_, attackers, connect):

        def secure() -> Any:
            return client_context.wrap_socket(connect(), server_hostname="localhost")

        with good_clients(secure, staying=2, leave=lambda sock: sock.unwrap()) as good:
            go_on_until(good, attackers, 20)


@needs_loopback
def test_a_flood_from_one_address_gets_only_the_share_of_one_address() -> None:
    """Here with all values of the profile."""
    with attacked(echo_lines, b"", count=100, addresses=1, **PUBLIC) as (
        server,
        attackers,
        connect,
    ):
        began = time.monotonic()
        with good_clients(connect, staying=3, returning=0) as good:
            go_on_until(good, attackers, 500)
            with connect() as sock:  # a newcomer
                sock.sendall(b"and me\n")
                assert receive_exactly(sock, 7) == b"and me\n"
            rate = PUBLIC["max_connection_rate"]
            most = rate * (1 + 5 * (time.monotonic() - began))
            assert server.connection_count <= min(most, PUBLIC["max_connections_per_ip"]) + 4
        assert server.refused_count >= 400


@needs_loopback
def test_a_flood_of_short_connections_does_not_keep_good_clients_out() -> None:
    with serving(echo_lines, profile="public", **FEW) as server:
        connect = functools.partial(socket.create_connection, server.server_address, PATIENCE)
        over = threading.Event()

        def flood() -> None:
            while not over.is_set():
                socks = [open_from("127.0.1.1", server) for _ in range(50)]
                for number, sock in enumerate(socks):
                    if number % 2:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.close()

        with in_thread(flood):
            try:
                with good_clients(connect, staying=2, returning=1) as good:
                    good.go_on(20)
            finally:
                over.set()
