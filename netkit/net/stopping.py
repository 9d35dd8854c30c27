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
        """Ask it to finish: what is under way goes on, and then its input ends.

        An idle connection (its thread waits in a read, and no part of a message has been received)
        sees the end of input at once; a busy one after the message under way. Returns None, or the
        seconds after which to ask again: for an opaque one that is busy, or about to speak TLS, and
        for one that waits in `close` until the peer has the rest.
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
        """Wake its thread from a read or a write, and raise `reason` there. From any thread.

        If the thread does neither, the next read or write raises it. If the handler does not catch
        it, the client gets what has been written, and `reason` is logged. A handler that catches it
        finds its input ended, except for what has been received, and may write a last word. After a
        write that was ended, and if `hard`, everything it tries raises `reason`. A handler that
        reads the socket itself sees the end of both directions. False if the connection was over.
        TypeError.
        """
        if not isinstance(reason, OSError):
            raise TypeError(f"reason must be an OSError, not {reason!r}")
        return self._end_now(reason, hard)

    def cut(self) -> bool:
        """End it now, in both directions; its thread wakes and closes it. False if it was over.

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
