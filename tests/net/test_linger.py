"""The steps of a close."""

from __future__ import annotations

import socket

from support import fill, tcp_pair

from netkit.core.deadline import Deadline
from netkit.net import linger, sockopts


def test_what_is_sent_is_waited_for_though_the_peer_has_ended_its_side() -> None:
    with tcp_pair() as (sock, peer):
        fill(sock)
        peer.shutdown(socket.SHUT_WR)
        deadline = Deadline(0.2)
        linger.deliver(sock, deadline, 1024)
        assert deadline.expired()
        assert sockopts.unsent(sock)
