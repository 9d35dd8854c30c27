"""Writes that do not wait: `post` and `outbox` of a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .outbox import Outbox
from .output import as_bytes
from .transport import Writable

if TYPE_CHECKING:
    from .connection import Connection


def post(conn: Connection[Any], data: Writable, encoding: str | None = None) -> int:
    """Send all of `data` without waiting, and return its number of bytes.

    What the kernel does not take at once is queued in `outbox`, and another thread sends it. What
    is written or posted later is sent after it. Thread-safe; a signal handler may call it.

    `write`, `end`, `flush` and `close` wait until everything that was posted before has been sent.
    WriteAfterEndError after `end`; ConnectionClosedError after `close`; OutboxFullError if the
    outbox is full, unless it drops messages; the error of a write that has failed before. If the
    data cannot be sent later, every further write raises the error; if a time limit has passed, the
    read that is under way raises it, too.
    """
    payload = data if type(data) is bytes else bytes(as_bytes(data, encoding or conn.encoding))
    box = conn._output.outbox or outbox(conn)
    if not box.offer(payload):
        raise box.full_error()
    return len(payload)


def outbox(conn: Connection[Any]) -> Outbox:
    """The queue of what `post` could not send at once: its size, its limit, and what is dropped."""
    output = conn._output
    if output.outbox is None:
        made = Outbox(output)
        with output.link.lock:
            output.outbox = output.outbox or made  # another thread may have been faster
    return output.outbox
