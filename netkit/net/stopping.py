"""How another thread, or a signal handler, stops a connection. Nothing here waits."""

from __future__ import annotations

import socket

from . import sockopts
from .bare import Bare
from .link import IN_SOCKET, Link
from .states import Life

# How often a stop asks whether the peer's kernel has the rest of a reply (seconds). Ending the wait
# for it earlier would let a byte from the peer reset the connection, which would destroy the rest.
# The kernel has no event for it (see `netkit.net.linger`).
UNSENT_SECONDS = 0.05


class Stoppable:
    """For classes that have a `_link`. Thread-safe."""

    __slots__ = ()
    _link: Link

    # How long the peer of an opaque connection is silent before it counts as idle (seconds). The
    # gaps within a message are shorter, and a stop may well wait so long.
    quiet_seconds = 0.5

    def end_input(self) -> float | None:
        """End the input once the message under way has been read.

        An idle connection (its thread waits in a read, and no part of a message has been received)
        sees the end of input at once. Returns None, or the seconds after which to ask again: for an
        opaque connection that is busy, or about to speak TLS, and for a connection that waits in
        `close` until the peer has the rest.
        """
        link = self._link
        with link.lock:
            link.changed = True
            link.input = link.input.drained()
            if link.life is Life.CLOSED:
                return None
            if link.life is not Life.OPEN and sockopts.unsent(link.sock):
                return UNSENT_SECONDS
            if isinstance(link.wire, Bare):
                wait = link.wire.seconds_until_quiet(self.quiet_seconds)
                if wait:
                    return wait
            elif not link.waiting or link.has_begun():
                return None
            link.input = link.input.shut()
            link.wire.shut_down(socket.SHUT_RD)
            return None

    def interrupt(self, reason: OSError, hard: bool = False) -> bool:
        """Raise `reason` in the read or write that is under way, or else in the next one.

        If the handler does not catch `reason`, the client gets what has been written, and `reason`
        is logged. A handler that catches it can still read what has been received, and write. But
        every further read and write raises `reason` if `hard`, or if a write was interrupted. A
        handler that reads the socket itself sees the end of both directions. False if the
        connection was closed already. TypeError unless `reason` is an OSError.
        """
        if not isinstance(reason, OSError):
            raise TypeError(f"reason must be an OSError, not {reason!r}")
        return self._end_now(reason, hard)

    def cut(self) -> bool:
        """End both directions now; the connection's thread wakes and closes it. False if closed.

        Without TLS the peer sees the end of input, also between two writes of one reply.
        """
        return self._end_now(None, True)

    def _end_now(self, reason: OSError | None, hard: bool) -> bool:
        link = self._link
        with link.lock:
            if link.life is Life.CLOSED:
                return False
            link.changed = True
            if reason is None:
                link.was_cut = True
                link.input = link.input.drained()
            else:
                link.interruption = reason
                link.input = link.input.shut()
            busy = link.life is not Life.OPEN or link.writing == IN_SOCKET
            hard = hard or link.wire.opaque or busy
            link.last_word = not hard
            link.wire.shut_down(socket.SHUT_RDWR if hard else socket.SHUT_RD)
            return True
