"""A loop that accepts and starts a thread for each client, with nothing around it.

`bare_threads.py [gated] PORT KIND [AMOUNT]`; `gated`: it receives and sends through netkit's gate.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

from work import BACKLOG, CHUNK, HOST, from_arguments


def serve(sock: socket.socket) -> None:
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(CHUNK):
            work.block()
            sock.sendall(data)


is_gated = sys.argv[1] == "gated"
port, work = from_arguments(1 if is_gated else 0)
if is_gated:
    from netkit.net.gate import Socket

    def accept(listener: Any) -> socket.socket:
        return Socket(fileno=listener._accept()[0])
else:

    def accept(listener: Any) -> socket.socket:
        return listener.accept()[0]


with socket.create_server((HOST, port), backlog=BACKLOG) as listener:
    while True:
        threading.Thread(target=serve, args=[accept(listener)], daemon=True).start()
