"""netkit, in three styles of handler: `netkit_server.py STYLE WORKERS PORT KIND [AMOUNT]`.

`handler` is EchoHandler or, with work to do, a class like it; `function` is a function with a
loop over the connection; `loop` is a bare recv/sendall loop as a handler of socketserver: what
netkit costs around a handler, and nothing of what it does for one. `limits` is `handler` with a
time limit of each kind.
"""

from __future__ import annotations

import socketserver
import sys
from typing import Any

from work import CHUNK, HOST, from_arguments

import netkit


class Class(netkit.Handler):
    def received(self, data: Any) -> None:
        work.block()
        self.conn.write(data)


def function(conn: netkit.Connection) -> None:
    for chunk in conn:
        work.block()
        conn.write(chunk)


def broadcast(conn: netkit.Connection) -> None:
    with group.member(conn):
        for chunk in conn:
            group.post(chunk)


class Loop(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        sock = self.request
        while data := sock.recv(CHUNK):
            work.block()
            sock.sendall(data)


group = netkit.Group()
style, workers = sys.argv[1], int(sys.argv[2])
port, work = from_arguments(2)
handlers: dict[str, Any] = {
    "handler": netkit.EchoHandler if work.kind == "echo" else Class,
    "function": function,
    "loop": Loop,
}
handlers["limits"] = handlers["handler"]
if work.kind == "broadcast":
    handlers[style] = broadcast
options: dict[str, Any] = {} if workers == 1 else {"workers": workers}
if style == "limits":
    options |= dict.fromkeys(("idle_timeout", "read_timeout", "write_timeout", "lifetime"), 600.0)
    options["min_rate"] = 1.0
if __name__ == "__main__":  # a worker that is started afresh imports this file
    netkit.serve(handlers[style], port, HOST, **options)
