# pyright: strict
"""A program that reads bytes and text, and the mistakes of one that takes the one for the other."""

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import netkit

if TYPE_CHECKING:
    from typing_extensions import assert_type


def read_bytes(conn: netkit.Connection) -> None:
    assert_type(conn, netkit.Connection[bytes])
    assert_type(conn.read(), bytes)
    assert_type(conn.read(100), bytes)
    assert_type(conn.readexactly(100), bytes)
    assert_type(conn.readuntil("\r\n"), bytes)
    assert_type(conn.readline(), bytes)
    assert_type(list(conn), list[bytes])
    assert_type(conn.peek(), bytes)
    assert_type(conn.read_message(netkit.LengthPrefix()), bytes | None)
    assert_type(conn.messages(netkit.LengthPrefix()), Iterator[bytes])
    assert_type(conn.readline(timeout=5), bytes)
    conn.readline(timeout="5")  # error
    assert_type(conn.lines(), Iterator[str])
    assert_type(conn.lines("latin-1", errors="strict"), Iterator[str])
    assert_type(conn.lines(encoding=None), Iterator[bytes])
    assert_type(conn.write("hello") + conn.write(b"hello"), int)
    conn.readline().encode()  # error
    if conn.read() == "quit\n":  # error
        return
    conn.write(5)  # error
    conn.readlines()  # error
    for chunk in conn:
        chunk.encode()  # error
    for line in conn.lines():
        line.decode()  # error


def read_text(conn: netkit.Connection, charset: str | None) -> None:
    text = conn.set_encoding("utf-8", errors="strict")
    assert_type(text, netkit.Connection[str])
    assert_type(conn.set_encoding(), netkit.Connection[str])
    assert_type(text.read(), str)
    assert_type(text.read(100), str)
    assert_type(text.readexactly(100), str)
    assert_type(text.readuntil("\r\n"), str)
    assert_type(text.readline(), str)
    assert_type(text.readexactly(100, timeout=5), str)
    assert_type(list(text), list[str])
    assert_type(text.peek(), bytes)
    assert_type(text.read_message(netkit.LengthPrefix()), bytes | None)
    assert_type(text.lines(), Iterator[str])
    assert_type(text.lines(encoding=None), Iterator[bytes])
    text.readline().decode()  # error
    assert_type(text.set_encoding(None), netkit.Connection[bytes])
    assert_type(conn.set_encoding(charset), netkit.Connection[Any])
    conn.set_encoding(8)  # error


# A function may ask for a connection of text, or take any connection.


def chat(conn: netkit.Connection[str]) -> str:
    return conn.readline()


def finish(conn: netkit.Connection[Any]) -> None:
    conn.end("bye\n")


def use(conn: netkit.Connection, channel: socket.socket) -> None:
    text = conn.set_encoding()
    chat(text)
    chat(conn)  # error
    finish(text)
    finish(conn)
    netkit.relay(conn, text)
    netkit.send_connection(channel, text)
    conn.pipe_to(text)
    with text as same, text.corked(), text.deadline(5):
        assert_type(same, netkit.Connection[str])
        text.set_timeout(5)
        text.set_no_delay()
        text.set_keep_alive(True, idle=60)
        assert_type(text.remote_address, str | None)
        assert_type(text.post("hello\n"), int)
        text.outbox.clear()  # error
        text.end()


# A group takes connections of both.


def join(conn: netkit.Connection, group: netkit.Group) -> None:
    text = conn.set_encoding()
    group.add(conn)
    with group.member(text) as member:
        assert_type(member, netkit.Connection[str])
        group.post("hello\n", but=text)
    group.add("somebody")  # error
    for each in group:
        each.end()


netkit.create_server(read_bytes)
netkit.create_server(finish)
netkit.create_server(chat)  # error


# Handlers


class Bytes(netkit.Handler):
    def received(self, data: bytes) -> None:
        assert_type(self.conn.read(), bytes)


class Text(netkit.Handler[netkit.Server, str]):
    def connected(self) -> None:
        self.conn.set_encoding("utf-8")

    def received(self, data: str) -> None:
        assert_type(self.conn.readline(), str)


class Wrong(netkit.Handler):
    def received(self, data: str) -> None: ...  # error


netkit.create_server(Bytes)
netkit.create_server(Text)
