"""Hostile or broken clients: the server serves the others, and frees what these have cost."""

from __future__ import annotations

import contextlib
import gc
import io
import random
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import the_connection, unharmed
from goodclients import GoodClients
from secure import contexts
from support import (
    PATIENCE,
    client,
    exchange,
    exchange_much,
    in_thread,
    in_threads,
    observed,
    receive_all,
    reset,
    send_and_end,
    serving,
    silent_log,
    wait_until,
)

import netkit
from netkit.core import events

FAILURES = (
    events.ClientFailed,
    events.HandlerFailed,
    events.HookFailed,
    events.AcceptFailed,
    events.AcceptPaused,
    events.ListenerLost,
)


# Handlers that send everything back, each by another way of reading


def by_chunks(conn: netkit.Connection) -> None:
    for chunk in conn:
        conn.write(chunk)


def by_text_lines(conn: netkit.Connection) -> None:
    conn.set_encoding()
    while line := conn.readline():
        conn.write(line)


def by_separator(conn: netkit.Connection) -> None:
    with contextlib.suppress(netkit.IncompleteReadError):
        while True:
            conn.write(conn.readuntil("\n"))


def by_peeking(conn: netkit.Connection) -> None:
    while seen := conn.peek():
        assert conn.read(len(seen)) == seen
        conn.write(seen)


Handler = Callable[[netkit.Connection], None]
each_handler = pytest.mark.parametrize(
    "handler", [by_chunks, by_text_lines, by_separator, by_peeking]
)


@contextlib.contextmanager
def under_attack(handler: Any) -> Iterator[tuple[netkit.Server, GoodClients]]:
    """A server that is attacked in the block, and good clients that it must go on serving."""
    with observed(*FAILURES) as failures, unharmed(handler, staying=1, returning=0) as both:
        yield both
    assert {type(failure) for failure in failures} <= {events.ClientFailed}


# What is sent

RANDOM = random.Random(7)
PAYLOADS = {
    "random": RANDOM.randbytes(20_000),
    "every byte": bytes(range(256)) * 20,
    "NULs": b"\0" * 5_000 + b"\n" + b"\0",
    "newlines": b"\n" * 5_000,
    "carriage returns": b"\r" * 5_000 + b"\r\n\r",
    "invalid UTF-8": b"\xff\xfe\xc0\x80\xed\xa0\x80\xf5\x90\x80\x80\xe2\x82\n" * 300,
    "a cut character": b"\n" + "€".encode()[:2],
    "a byte order mark": b"\xff\xfe\xfe\xff\xef\xbb\xbf\n",
    "escapes": b"\x1b]0;owned\x07\x1b[2J\x9b31m\n" * 500,
}
each_payload = pytest.mark.parametrize("name", PAYLOADS)


ENCODINGS = ["ascii", "utf16le", "base64", "utf-7", "shift_jis", "iso2022_jp"]


@each_handler
def test_garbage_is_read_in_any_way_while_others_are_served(handler: Handler) -> None:
    with under_attack(handler) as (server, _):
        for name, payload in PAYLOADS.items():
            reply = exchange_much(server, payload)
            if handler in (by_chunks, by_peeking):
                assert reply == payload, name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_garbage_is_text_in_any_encoding(encoding: str) -> None:
    garbage = PAYLOADS["random"] + PAYLOADS["every byte"] + PAYLOADS["escapes"]
    texts: list[str] = []

    def handler(conn: netkit.Connection) -> None:
        conn.set_encoding(encoding)
        texts.extend(conn)

    def logger(conn: netkit.Connection) -> None:
        text_logger = netkit.LoggerHandler(conn, output=output)
        text_logger.handle()

    output = io.BytesIO()
    with silent_log(), observed(*FAILURES) as failures:
        with serving(handler) as server:
            exchange(server, garbage)
        with serving(logger, encoding=encoding) as server:
            exchange(server, garbage)
    assert failures == []
    assert "".join(texts) == netkit.to_str(garbage, encoding)
    assert all(line.isprintable() for line in output.getvalue().decode().split("\n"))


@each_payload
def test_garbage_in_the_log_is_printable_and_the_lines_of_others_are_intact(name: str) -> None:
    output = io.BytesIO()
    with silent_log(), observed(*FAILURES) as failures:
        with serving(netkit.LoggerHandler, handler_args={"output": output}) as server:
            with client(server) as good:
                good.sendall(b"good 0\n")
                wait_until(output.getvalue, "the first line")
                with in_thread(exchange_much, server, PAYLOADS[name]):
                    for number in range(1, 100):
                        good.sendall(b"good %d\n" % number)
    assert failures == []
    lines = output.getvalue().decode().split("\n")
    assert all(line.isprintable() for line in lines)
    good_ones = [line for line in lines if line.startswith("good ")]
    assert good_ones == [f"good {number}" for number in range(100)]


def test_ten_megabytes_without_a_newline_are_the_clients_fault() -> None:
    flood = b"x" * 10_000_000
    with observed(events.ClientFailed) as failures, under_attack(by_text_lines) as (server, _):
        with contextlib.suppress(
            ConnectionError
        ):  # the rest of the flood may be answered by a reset
            assert exchange_much(server, flood) == b""
        wait_until(lambda: failures)
    (failure,) = failures
    assert isinstance(failure.error, netkit.LineTooLongError)


# How it is sent, or not


def test_a_client_that_ends_its_side_and_stays_does_not_keep_its_thread() -> None:
    with under_attack(netkit.EchoHandler) as (server, good), client(server) as sock:
        send_and_end(sock, b"hello")
        wait_until(lambda: server.connection_count == 1, "the end")
        good.go_on()
        assert receive_all(sock) == b"hello"  # it is still there to be read


@pytest.mark.parametrize("handler", [by_chunks, by_text_lines])
def test_huge_pipelined_input_comes_back_in_order_to_a_slow_reader(handler: Handler) -> None:
    flood = b"".join(b"request %d %s\n" % (number, b"x" * 300) for number in range(25_000))
    with under_attack(handler) as (server, good), client(server) as sock:
        with in_thread(send_and_end, sock, flood):
            conn = the_connection(server, sock)
            received = bytearray()
            for _ in range(20):
                received += sock.recv(1000)
                good.go_on()
            assert conn.bytes_written < len(flood)  # it waits for its client
            received += receive_all(sock)
    assert received == flood


def test_urgent_data_is_no_part_of_the_stream() -> None:
    with under_attack(netkit.EchoHandler) as (server, _), client(server) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        sock.send(b"!", socket.MSG_OOB)
        send_and_end(sock, b"b")
        assert receive_all(sock) == b"b"


def test_many_attackers_at_once_are_as_harmless_as_one() -> None:
    def attack(number: int) -> None:
        generator = random.Random(number)
        for _ in range(5):
            with client(server) as sock, contextlib.suppress(ConnectionError):
                sock.settimeout(PATIENCE)
                sock.sendall(generator.randbytes(generator.randrange(1, 5000)))
                way = generator.randrange(4)
                if way == 0:
                    reset(sock)
                elif way == 1:
                    sock.recv(10)
                elif way == 2:
                    sock.shutdown(socket.SHUT_WR)
                    receive_all(sock)
                else:
                    sock.shutdown(socket.SHUT_RD)

    with under_attack(by_chunks) as (server, _):
        in_threads(attack, [(number,) for number in range(10)])


# Memory


class Held:
    """Something large that a handler has made of what it has read."""


def keep_and_read(conn: netkit.Connection, held: weakref.WeakSet[Held]) -> None:
    mine = Held()
    held.add(mine)
    while conn.readline():
        mine.__class__ = Held


def keep_and_write(conn: netkit.Connection, held: weakref.WeakSet[Held]) -> None:
    mine = Held()
    held.add(mine)
    conn.set_timeout(0.05)
    while mine:
        conn.write(b"x" * 1_000_000)


def hang_up(sock: socket.socket) -> None:
    sock.sendall(b"half a line")
    reset(sock)


def stay(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while sock.recv(10):
            sock.settimeout(0.01)


def garble(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        send_and_end(sock, b"this is no TLS\n" * 10)
        receive_all(sock)


LEAVING: dict[str, tuple[Any, dict[str, Any], Callable[[socket.socket], object]]] = {
    "at once": (keep_and_read, {}, socket.socket.close),
    "by a reset": (keep_and_read, {}, hang_up),
    "after silence": (keep_and_read, {"idle_timeout": 0.05}, receive_all),
    "with too long a line": (keep_and_read, {"max_line": 5}, hang_up),
    "without reading": (keep_and_write, {}, lambda _: threading.Event().wait(0.2)),
    "too old": (keep_and_read, {"lifetime": 0.05}, receive_all),
    "garbage": (keep_and_read, {}, garble),
}


@pytest.mark.parametrize(
    ("way", "tls"),
    [(way, False) for way in LEAVING]
    + [(way, True) for way in ("at once", "without reading", "garbage")],
)
def test_what_a_client_has_cost_is_free_when_it_is_gone_without_the_garbage_collector(
    way: str, tls: bool
) -> None:
    handler, options, leave = LEAVING[way]
    held: weakref.WeakSet[Held] = weakref.WeakSet()
    connections: weakref.WeakSet[netkit.Connection] = weakref.WeakSet()
    arguments = {"handler_args": {"held": held}, **options}
    if tls:
        arguments["tls"] = contexts()[0]
    gc.collect()
    gc.disable()
    try:
        with silent_log(), serving(handler, **arguments) as server:
            for _ in range(3):
                with client(server) as sock:
                    connections.add(the_connection(server, sock))
                    if tls and way != "garbage":
                        with contexts()[1].wrap_socket(
                            sock, server_hostname="localhost"
                        ) as secured:
                            leave(secured)
                    else:
                        leave(sock)
                server.wait_for_connections(0)
        wait_until(lambda: not connections and not held, "the end of what the clients have cost")
    finally:
        gc.enable()
