"""Both directions of a transfer, apart from the command that makes it."""

from __future__ import annotations

import argparse
import errno
import io
import socket
import threading
from collections.abc import Iterator

import pytest
from support import PATIENCE

import netkit
from netkit.cli.conversation import GRACE, exchange

ARGUMENTS = argparse.Namespace(crlf=False, no_half_close=False)


class Pieces:
    """An input of one piece, during which the peer replies and ends its side.

    After the piece it raises `error`, or else it ends once it was told to.
    """

    def __init__(self, peer: socket.socket, error: Exception | None = None) -> None:
        self._peer = peer
        self._error = error
        self._ended = threading.Event()
        self.ended_after: list[float] = []

    def __iter__(self) -> Iterator[bytes]:
        self._peer.sendall(b"reply")
        self._peer.shutdown(socket.SHUT_WR)
        yield b"request"
        if self._error is not None:
            raise self._error
        assert self._ended.wait(PATIENCE)

    def end_after(self, seconds: float) -> None:
        self.ended_after.append(seconds)
        self._ended.set()


@pytest.mark.parametrize("main_sends", [True, False])
def test_an_input_that_fails_is_reported_after_all_replies(main_sends: bool) -> None:
    ours, peer = socket.socketpair()
    received = io.BytesIO()
    with peer, netkit.Connection(ours) as conn:
        source = Pieces(peer, ConnectionResetError("the input is a socket, too"))
        with pytest.raises(ConnectionResetError, match="the input is a socket, too"):
            exchange(conn, source, received, ARGUMENTS, main_sends=main_sends)
        assert received.getvalue() == b"reply"
        assert peer.recv(100) == b"request"
        assert source.ended_after == [GRACE]


def test_an_output_that_fails_ends_the_input_and_is_the_error_that_is_raised() -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    ours, peer = socket.socketpair()
    with peer, netkit.Connection(ours) as conn:
        source = Pieces(peer)
        with pytest.raises(OSError, match="no space left on device"):
            exchange(conn, source, Full(), ARGUMENTS, main_sends=True)
        assert source.ended_after == [0]
