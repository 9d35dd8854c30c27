"""Stops servers once the program has come to its end.

Their threads are daemons, so that a handler that never ends cannot keep the interpreter; replies
under way at its exit are waited for here, for a while. The accepting thread of `Server.start` is no
daemon: it keeps the program alive, as any thread of Python does, until the server is stopped.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import weakref
from typing import TYPE_CHECKING

from ..core import events
from ..net.forks import call_in_children, free_in_children

if TYPE_CHECKING:
    from .server import Server

_lock = free_in_children(threading.RLock())  # guards what follows; re-entrant, for signal handlers
_accepting: weakref.WeakSet[Server] = weakref.WeakSet()  # those that have accepted clients


def close_at_exit(server: Server) -> None:
    """Have it closed, and its clients waited for, when the interpreter exits."""
    with _lock:
        _accepting.add(server)


def _servers() -> list[Server]:
    with _lock:  # a set cannot be gone through while a thread adds to it
        return list(_accepting)


def _leave_to_parent() -> None:
    """In a forked child: servers that accept clients are the parent's."""
    while _accepting:
        _accepting.pop()._end_in_child()


call_in_children(_leave_to_parent)


@atexit.register
def _close_all() -> None:
    for server in _servers():
        with contextlib.suppress(Exception):
            server.server_close()
            server.stop()  # for a handler that has stopped its server, and is not done


def _serve_on() -> None:
    """Wait for the servers that keep the program alive. Ctrl+C stops them gracefully.

    Python would wait for their threads, too, and show a traceback for Ctrl+C.
    """
    servers: list[Server] = []
    try:
        servers += [server for server in _servers() if server._drain.keeps_alive()]
        if hasattr(sys, "ps1"):  # at Python's prompt it would look as if Python hung
            for server in servers:
                events.emit(events.ServingOn(server._listeners.describe()), server)
        for server in servers:
            server._drain.join_background(None)
    except KeyboardInterrupt:
        _stop(servers)


def _stop(servers: list[Server]) -> None:
    try:
        for server in servers:
            server.request_stop()
        for server in servers:
            server.stop()
    except KeyboardInterrupt:  # a second one
        for server in servers:
            server.close()


# What `concurrent.futures` uses, too: called in the main thread before the others are waited for.
if hasattr(threading, "_register_atexit"):  # pragma: no branch - every CPython has it
    threading._register_atexit(_serve_on)
