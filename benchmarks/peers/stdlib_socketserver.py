"""The standard library's server with a thread for each client, set up as well as it can be."""

from __future__ import annotations

import socketserver
from socket import IPPROTO_TCP, TCP_NODELAY

from work import BACKLOG, CHUNK, HOST, from_arguments


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        sock = self.request
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        while data := sock.recv(CHUNK):
            work.block()
            sock.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = BACKLOG
    daemon_threads = True  # or it keeps a list of all threads


port, work = from_arguments()
with Server((HOST, port), Echo) as server:
    server.serve_forever()
