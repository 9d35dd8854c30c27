"""Stops servers at the end of the program.

The threads of clients are daemons, so that a handler that never returns does not keep the process
alive. So the interpreter's exit stops each server, which gives its clients `drain_timeout` seconds.
The accepting thread of `Server.start` is not a daemon: it keeps the process alive until the server
is stopped.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import weakref
from typing import Any

from ..core import events
from ..net.forks import call_in_children, renew_in_children

_lock = threading.RLock()  # guards what follows; re-entrant, for signal handlers
renew_in_children(sys.modules[__name__], "_lock")
_accepting: weakref.WeakSet[Any] = weakref.WeakSet()  # the servers that have accepted clients


def close_at_exit(server: Any) -> None:
    """Have `server` stopped when the interpreter exits."""
    with _lock:
        _accepting.add(server)


def accepting() -> list[Any]:
    """Return the servers that have accepted clients in this process, and still exist."""
    with _lock:  # a thread may add a server meanwhile
        return list(_accepting)


def _leave_to_parent() -> None:
    """In a forked child: leave servers that accept clients to the parent."""
    while _accepting:
        _accepting.pop()._end_in_child()


call_in_children(_leave_to_parent)


@atexit.register
def _close_all() -> None:
    for server in accepting():
        with contextlib.suppress(Exception):
            server.server_close()
            server.stop()  # waits for a handler that has stopped its server itself


def _serve_on() -> None:
    """Wait for the servers that keep the process alive. Ctrl+C stops them gracefully.

    Without this Python would wait for their threads, and show a traceback for Ctrl+C.
    """
    servers: list[Any] = []
    try:
        servers += [server for server in accepting() if server._accept_loop.keeps_alive()]
        if hasattr(sys, "ps1"):  # at Python's prompt it would look as if Python hung
            for server in servers:
                events.emit(events.ServingOn(server._listeners.describe()), server)
        for server in servers:
            server._accept_loop.join_background(None)
    except KeyboardInterrupt:
        _stop(servers)


def _stop(servers: list[Any]) -> None:
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
