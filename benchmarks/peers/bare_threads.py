"""A loop that accepts and starts a thread for each client, with nothing around it."""

from __future__ import annotations

import socket
import threading

from work import BACKLOG, CHUNK, HOST, from_arguments


def serve(sock: socket.socket) -> None:
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := sock.recv(CHUNK):
            work.block()
            sock.sendall(data)


port, work = from_arguments()
with socket.create_server((HOST, port), backlog=BACKLOG) as listener:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=[client], daemon=True).start()
