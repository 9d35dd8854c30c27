"""Each part of a server, made by itself around a server of `socketserver`, which knows no part."""

from __future__ import annotations

import contextlib
import socket
import socketserver
from collections.abc import Iterator
from typing import Any

import pytest
from support import PATIENCE, Shout, in_thread, observed, receive_all, send_and_end, wait_until

import netkit
from netkit.core import events
from netkit.core.endpoint import DIRECT
from netkit.core.options import Options
from netkit.server.accept_loop import AcceptLoop
from netkit.server.acceptor import Acceptor, Answer
from netkit.server.adapting import Serve
from netkit.server.admission import NO_SHARE, Admission
from netkit.server.clients import Clients
from netkit.server.compat import Compat
from netkit.server.drain import Drain
from netkit.server.life import Life, State
from netkit.server.listeners import Listeners
from netkit.server.overflow import Overflow
from netkit.server.proxying import Proxying
from netkit.server.refusals import Refusals
from netkit.server.registrar import Registrar
from netkit.server.registry import Registry
from netkit.server.reports import Reports
from netkit.server.serving import Serving
from netkit.server.setup import Configuration, Setup
from netkit.server.threads import ClientThreads
from netkit.server.watchdog import Watchdog


class Parts:
    """The parts of a server, and the plain server that they are made for."""

    def __init__(self, server: socketserver.ThreadingTCPServer, setup: Setup) -> None:
        self.server, self.life = server, Life()
        self.config = config = Configuration(setup, lambda *_: None, lambda _: None)
        self.loop = loop = AcceptLoop(lambda: self.registry.notify(), server)
        self.admission = Admission(setup.options, loop.wake)
        self.registry = registry = Registry(self.admission.over, server)
        self.threads = threads = ClientThreads(lambda: True, loop.may_retry)
        self.watchdog = Watchdog(registry.live)
        self.listeners = Listeners(server, self.life, config, lambda: None)
        self.refusals = Refusals(server=server)
        self.reports = reports = Reports(config, server)
        registrar = Registrar(server, self.admission, self.listeners, registry, self.watchdog)
        self.compat = Compat(
            server, lambda _: False, config, loop, registrar, registry, threads, reports
        )
        proxying = Proxying(self.admission, self.refusals, registry, self.compat)
        parts = registrar, registry, threads, self.compat, reports, proxying
        self.clients = Clients(config, loop, *parts, lambda: False)

    def acceptor(self, clients: Any) -> Acceptor:
        limits = self.admission, Overflow(), self.refusals
        return Acceptor(
            self.server, self.config, self.loop, self.listeners, *limits, self.registry, clients
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(self.server.server_address[:2], PATIENCE)  # type: ignore[arg-type]


@contextlib.contextmanager
def parts(serve: Serve | None = None, handler: Any = None, **options: Any) -> Iterator[Parts]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        made = Parts(server, Setup(Options(**options), handler, serve))
        yield made
        made.threads.close()
        assert made.threads.join(PATIENCE)


class Taken(list[Any]):
    """Replaces the clients of an acceptor, and keeps what they are given."""

    deliver = None

    def admit(self, *client: Any) -> None:
        self.append(client)


def echo(conn: netkit.Connection) -> None:
    conn.write(conn.read())


def test_an_acceptor_accepts_by_the_hook_of_its_server_and_hands_the_client_on() -> None:
    with parts() as made, made.connect() as client:
        taken = Taken()
        assert made.acceptor(taken).accept() is Answer.NEXT
        ((request, address, ticket, layers),) = taken
        request.close()
        assert address == client.getsockname()
        assert (ticket, layers) == (NO_SHARE, DIRECT)


def test_an_acceptor_refuses_an_address_of_the_list() -> None:
    with parts(deny=["127.0.0.0/8"]) as made, made.connect() as client, observed() as seen:
        taken = Taken()
        assert made.acceptor(taken).accept() is Answer.NEXT
        assert receive_all(client) == b""
    assert (taken, made.refusals.count) == ([], 1)
    assert [type(event) for event in seen] == [events.Refusing, events.ClientRefused]


def test_an_acceptor_of_a_full_server_has_no_place_to_give_back_when_the_client_is_gone() -> None:
    with parts(max_connections=1, when_full="refuse") as made:
        made.server.socket.settimeout(0)
        assert made.admission.enter()
        assert made.acceptor(Taken()).accept() is Answer.EMPTY
        assert not made.admission.enter()


@pytest.mark.parametrize(("serve", "handler"), [(echo, None), (None, Shout)])
def test_a_client_is_served_by_a_function_or_through_the_hooks_of_the_server(
    serve: Serve | None, handler: Any
) -> None:
    """Those of `socketserver`: the server has no others."""
    with parts(serve, handler) as made, made.connect() as client:
        made.clients.admit(*made.server.get_request(), NO_SHARE)
        send_and_end(client, b"hello\n")
        assert receive_all(client).lower() == b"hello\n"
        assert made.registry.wait_for(0, PATIENCE)


def serving(made: Parts) -> Serving:
    made.life.state = State.LISTENING
    made.server.socket.settimeout(None)
    acceptor = made.acceptor(made.clients)
    around = made.config, made.life, made.listeners, made.loop, acceptor, made.clients, made.compat
    return Serving(made.server, lambda _: False, *around)


def test_a_loop_serves_until_it_is_stopped() -> None:
    with parts(echo) as made:
        with in_thread(serving(made).forever, 1000):
            with made.connect() as client:
                send_and_end(client, b"hello")
                assert receive_all(client) == b"hello"
            made.loop.request_stop()
        assert not made.loop.under_way


def test_a_drain_closes_the_server_and_reports_its_clients() -> None:
    with parts(echo) as made, made.connect() as client, observed(events.Stopped) as stopped:
        acceptor = made.acceptor(made.clients)
        around = made.config, made.life, made.listeners, made.loop, acceptor
        drain = Drain(made.server, *around, made.registry, made.threads, made.watchdog)
        with in_thread(serving(made).forever, 1000):
            wait_until(made.registry.live)
            assert drain.stop(PATIENCE, 0.0) == (1, 0)
        assert receive_all(client) == b""
        assert (made.life.state, made.server.fileno()) == (State.CLOSED, -1)
    assert stopped == [events.Stopped(1, 0)]
