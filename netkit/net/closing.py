"""The steps of `Connection.close`, and of a stop by another thread.

Closing never truncates: what is left is sent, then the end of our side, and what the peer still
sends is dropped for a while (`netkit.net.linger`). Where only a part of what was to be written has
been sent, the peer sees a reset in place of the end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from ..core.deadline import Deadline
from . import linger, sockopts
from .link import IN_SOCKET, Link
from .output import Output
from .states import InputState, Life

# How often a stop asks whether the peer's kernel has the rest of a reply (seconds). Ending the wait
# for it earlier would let a byte from the peer reset the connection, which would destroy the rest.
# The kernel has no event for it (see `linger.ACKNOWLEDGEMENT`).
UNSENT_SECONDS = 0.05


def finish(
    link: Link,
    output: Output,
    deadline: Deadline,
    size: int,
    hurried: bool,
    forget: Callable[[], object],
) -> bool:
    """All of a close except the descriptor, for a `link` that is CLOSING.

    Waits until `deadline`, and drops about `size` bytes of input. `hurried`: wait only until the
    peer's kernel has everything. `forget` is called before a longer wait, and drops what has been
    received. False if nothing is left to be done by this thread.
    """
    if not output.finish(deadline.remaining() or 0):
        link.abort(reset=link.can_reset())
        return False
    if link.leave_closing():
        return False
    if link.is_input_over() and not link.input.is_shut() and not link.must_reset():
        with link.lock:  # most peers end their side first
            sockopts.shut_down(link.sock, socket.SHUT_WR)
    else:
        forget()
        _linger(link, deadline, size, hurried)
    with link.lock:
        if link.life is Life.CLOSING:
            link.life = Life.FINISHED
    return True


def _linger(link: Link, deadline: Deadline, size: int, hurried: bool) -> None:
    with link.lock:
        if link.life is Life.CLOSED:
            return
        link.waiting = True  # so that `end_input`, `cut` and `destroy` can end the wait
        ended, shut = link.is_input_over(), link.input.is_shut()
        # A stop does not wait longer than it must. Nor does a connection whose peer has sent more
        # after our last byte: it has read that.
        hurried = (
            hurried
            or link.input not in (InputState.OPEN, InputState.ENDED)
            or (not link.wire.opaque and link.heard == link.bytes_written)
        )
    seconds = deadline.remaining() or 0
    try:
        if not link.must_reset():
            linger.linger(link.sock, seconds, size, ended=ended, input_shut=shut, hurried=hurried)
        else:
            if not isinstance(link.broken, TimeoutError):  # the peer has had its time
                linger.deliver(link.sock, seconds, size)
            sockopts.reset_on_close(link.sock)
    finally:
        link.waiting = False
    link.leave()


def end_input(link: Link, quiet: float) -> float | None:
    """As of `Connection.end_input`; an opaque peer is idle after `quiet` seconds."""
    with link.lock:
        link.changed = True
        link.input = link.input.drained()
        if link.life is Life.CLOSED:
            return None
        if link.life is not Life.OPEN and sockopts.unsent(link.sock):
            return UNSENT_SECONDS
        if link.wire.opaque:
            wait = link.wire.seconds_until_quiet(quiet)
            if wait:
                return wait
        elif not link.waiting or link.has_begun():
            return None
        link.input = link.input.shut()
        link.wire.shut_down(socket.SHUT_RD)
        return None


def end_now(link: Link, reason: OSError | None, hard: bool) -> bool:
    """End `link` for `reason`, or cut it if there is none; see `Connection.interrupt`."""
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
