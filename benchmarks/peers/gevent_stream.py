"""gevent's StreamServer: code that blocks, in greenlets of one thread."""

from __future__ import annotations

from typing import Any

import gevent
from gevent.server import StreamServer
from gevent.socket import IPPROTO_TCP, TCP_NODELAY
from work import BACKLOG, CHUNK, HOST, from_arguments


def serve(sock: Any, address: Any) -> None:
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    while data := sock.recv(CHUNK):
        if work.kind == "sleep":
            gevent.sleep(work.seconds)
        else:
            work.block()
        sock.sendall(data)


port, work = from_arguments()
StreamServer((HOST, port), serve, backlog=BACKLOG).serve_forever()
