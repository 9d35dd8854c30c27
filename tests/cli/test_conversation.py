"""Both directions of a transfer, apart from the command that makes it."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator

import pytest

import netkit
from netkit.cli.conversation import _exchange, _Sender
from netkit.cli.stdio import Input


def test_an_input_that_fails_is_reported_after_all_replies() -> None:
    ours, peer = socket.socketpair()

    def pieces() -> Iterator[bytes]:
        peer.sendall(b"reply")
        peer.shutdown(socket.SHUT_WR)
        yield b"request"
        raise ConnectionResetError("the input is a socket, too")

    received = io.BytesIO()
    with peer, netkit.Connection(ours) as conn, contextlib.closing(Input(None)) as source:
        with pytest.raises(ConnectionResetError, match="the input is a socket, too"):
            _exchange(conn, _Sender(conn, pieces(), bytes, True), source, received)
        assert received.getvalue() == b"reply"
        assert peer.recv(100) == b"request"
