"""The steps of `Connection.close`.

Closing never truncates: what is left is sent, then the end of our side, and what the peer still
sends is dropped for a while (`netkit.net.linger`). Where only a part of what was to be written has
been sent, the peer sees a reset in place of the end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from ..core.deadline import Deadline
from . import linger, sockopts
from .link import Link
from .output import Output
from .states import InputState, Life


def begin(link: Link) -> bool:
    """Begin the close. False if another thread closes it, or will close it after its handshake."""
    with link.lock:
        if link.life is not Life.OPEN:
            return False
        link.changed = True
        link.life = Life.CLOSING
    return not (link.transport.shaking_hands and link.leave_closing())


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
        link.abort(reset=link.can_reset)
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
