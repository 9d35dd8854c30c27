"""The calls of connections on their sockets: compiled ones where they exist, else Python's own.

With the GIL, each thread that returns from the kernel waits for the GIL, and hundreds of threads
spend most of the machine on that. In the compiled module, one thread at a time waits for the GIL,
as the comment in `_gate.c` says. Rules:

1. `recv`, `recv_into`, `send` and `sendall` are methods of ``socket.socket`` in both cases, not
   bound: ``gate.recv.__get__(sock)`` is like ``sock.recv``. Results and errors are the same.
2. The compiled module is optional. It is not used without the GIL, where it cannot be imported, and
   if the environment has ``NETKIT_GATE=off``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.cores import has_gil, usable_cores
from . import forks

if TYPE_CHECKING:
    from . import _gate as methods

    _is_active: bool
else:
    methods, _is_active = socket.socket, False
    is_off = os.environ.get("NETKIT_GATE", "").lower() == "off"
    if has_gil() and not is_off:  # pragma: no branch - processes of tests turn it off
        with contextlib.suppress(ImportError):  # it was not built
            from . import _gate as methods

            _is_active = True


def renew() -> None:
    """Make the gate anew: in a forked child, or since the process may use other cores.

    Threads spin at the gate only if the thread in it may run on another core. Not while a thread
    uses a connection. Does nothing without the compiled module.
    """
    if _is_active:
        methods.open(len(usable_cores()) > 1)


renew()
forks.call_in_children(renew)


def gate_active() -> bool:
    """Whether this process uses the compiled module; see docs/gate.md."""
    return _is_active


recv = methods.recv
recv_into = methods.recv_into
send = methods.send
sendall = methods.sendall


class _GatedSocket(socket.socket):
    """A socket whose own reads and writes, and those of its `makefile`, use the calls above."""

    __slots__ = ()
    recv = methods.recv
    recv_into = methods.recv_into
    send = methods.send
    sendall = methods.sendall


Socket = _GatedSocket if _is_active else socket.socket
"""The class for sockets that a server accepts."""
PLAIN = frozenset((socket.socket, Socket))
"""The classes of sockets that are nothing more than a socket: neither TLS nor a program's own."""
UNGATED = socket.socket if _is_active else None
"""The class of sockets that do not use the calls above by themselves; None if there is none."""


def calls(sock: socket.socket) -> tuple[Callable[[int], bytes], Callable[..., int]]:
    """Return `recv` and `send` above, as methods of `sock`."""
    return recv.__get__(sock), send.__get__(sock)
