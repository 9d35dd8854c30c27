"""serve_forever, shutdown and server_close, as programs written for socketserver call them."""

from __future__ import annotations

import contextlib
import re
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import (
    PATIENCE,
    Shout,
    client,
    exchange,
    observed,
    receive_all,
    receive_exactly,
    serving_forever,
    wait_until,
)

import netkit
from netkit.core import events

LOCAL = ("127.0.0.1", 0)


def returns(function: Callable[[], object]) -> None:
    """Call it in a thread, so that a call that does not return fails the test."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    ends(thread)


def ends(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_shutdown_before_serve_forever_does_not_block_and_ends_the_next_one() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        returns(server.shutdown)
        returns(server.serve_forever)
        with serving_forever(server):  # the request was for the first one only
            assert exchange(server, b"a\n") == b"A\n"


@pytest.mark.parametrize("method", ["shutdown", "server_close", "stop"])
def test_a_signal_handler_in_the_serving_thread_can_stop_the_server(method: str) -> None:
    main = threading.main_thread().ident or 0
    with netkit.Server(LOCAL, Shout) as server:

        def signal_main() -> None:
            assert exchange(server, b"a\n") == b"A\n"
            signal.pthread_kill(main, signal.SIGUSR1)

        previous = signal.signal(signal.SIGUSR1, lambda *_: getattr(server, method)())
        thread = threading.Thread(target=signal_main)
        thread.start()
        try:
            server.serve_forever()
        finally:
            thread.join()
            signal.signal(signal.SIGUSR1, previous)


def test_a_hook_in_the_serving_thread_can_shut_the_server_down() -> None:
    class Server(netkit.Server):
        def service_actions(self) -> None:
            self.shutdown()

    with Server(LOCAL, Shout) as server:
        returns(lambda: server.serve_forever(0.01))


@pytest.mark.parametrize("method", ["shutdown", "server_close"])
def test_a_request_handler_can_end_the_loop_and_still_reply(method: str) -> None:
    class Quit(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            getattr(self.server, method)()
            self.request.sendall(b"ended\n")

    with netkit.Server(LOCAL, Quit) as server, serving_forever(server) as thread:
        with observed(events.HandlerFailed) as failures, client(server) as sock:
            assert receive_all(sock) == b"ended\n"
            ends(thread)
    assert not failures


def test_a_second_shutdown_does_not_end_the_next_serve_forever() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        with serving_forever(server) as first:
            assert exchange(server, b"a\n") == b"A\n"
            server.shutdown()
            server.shutdown()
            ends(first)
            with client(server) as sock, serving_forever(server):
                sock.sendall(b"queued meanwhile\n")
                assert receive_exactly(sock, 17) == b"QUEUED MEANWHILE\n"
                sock.close()


def test_shutdown_does_not_wait_for_the_poll_interval() -> None:
    with netkit.Server(LOCAL, Shout) as server:
        thread = threading.Thread(target=server.serve_forever, args=(60.0,))
        thread.start()
        assert exchange(server, b"a\n") == b"A\n"
        returns(server.shutdown)  # within PATIENCE, which is less than the interval
        ends(thread)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_idle_server_never_wakes_up() -> None:
    def times_waited() -> int:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        match = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        assert match
        return int(match[1])

    with netkit.Server(LOCAL, Shout) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert exchange(server, b"a\n") == b"A\n"
            wait_until(lambda: not server.connections)
            before = times_waited()
            time.sleep(0.3)  # 30 poll intervals
            assert times_waited() - before < 10
        finally:
            server.shutdown()
            thread.join()


def test_server_close_without_shutdown_ends_the_loop() -> None:
    with netkit.Server(LOCAL, Shout) as server, serving_forever(server) as thread:
        assert exchange(server, b"a\n") == b"A\n"
        server.server_close()
        ends(thread)


def test_two_servers_that_share_a_listener_both_stop() -> None:
    with netkit.Server(LOCAL, Shout) as one:
        two = netkit.Server(LOCAL, Shout, bind_and_activate=False)
        two.socket.close()
        two.socket = one.socket.dup()
        with two, serving_forever(one), serving_forever(two):
            for _ in range(20):
                assert exchange(one, b"a\n") == b"A\n"
            returns(one.shutdown)
            returns(two.shutdown)


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("handler", [Shout, netkit.EchoHandler])
def test_ctrl_c_while_the_thread_of_a_client_starts_leaves_no_client_half_served(
    handler: Any, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(thread: threading.Thread) -> None:
        threads.append(thread)
        if started:
            start(thread)
            wait_until(lambda: server.connections[0].thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    threads: list[threading.Thread] = []
    with netkit.Server(LOCAL, handler) as server, client(server) as sock:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.serve_forever()
        if started:
            sock.sendall(b"A\n")
            assert receive_exactly(sock, 2) == b"A\n"
            return
        assert sock.recv(1) == b""
        assert not server.connections
        with observed(events.HandlerFailed) as failures:
            start(threads[0])  # which was just about to
            wait_until(lambda: threads[0].name == "netkit-parked")
        assert not failures


def test_a_server_can_be_bound_again_while_its_old_connections_are_in_time_wait() -> None:
    class HangsUp(socketserver.BaseRequestHandler):
        """Ends its side first: so it is the server's side that is in TIME_WAIT."""

    with netkit.Server(LOCAL, HangsUp) as server, serving_forever(server):
        address = server.server_address
        assert exchange(server, b"") == b""
    with netkit.Server(address, Shout) as server, serving_forever(server):
        assert exchange(server, b"a\n") == b"A\n"


def test_accepting_a_client_costs_the_same_number_of_calls_however_many_there_are() -> None:
    class Counting(netkit.Server):
        calls = 0

        def get_request(self) -> Any:
            got = super().get_request()
            self.calls = 0
            sys.setprofile(self.count)
            return got

        def count(self, *_: object) -> None:
            self.calls += 1

        def service_actions(self) -> None:
            sys.setprofile(None)
            if self.calls:
                per_accept.append(self.calls)
                self.calls = 0

    per_accept: list[int] = []
    with Counting(LOCAL, Shout) as server, contextlib.ExitStack() as clients:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for count in range(1, 121):
                clients.enter_context(client(server))
                wait_until(lambda n=count: len(per_accept) == n)
        finally:
            clients.close()
            server.server_close()
            thread.join()
    # The least of ten, since the start of a thread takes a few calls more or less. A look at each
    # of the threads would take 110 more.
    assert min(per_accept[-10:]) < min(per_accept[:10]) + 30
