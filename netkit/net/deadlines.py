"""Deadlines: one moment by which a block of a program has done its reads and writes.

A block adds its deadline to the timer of the connection (`netkit.net.timeouts`), and removes it at
its end. It starts no thread. Rules:

1. A deadline applies to the calls of the thread that has entered the block. Otherwise a handler
   that waits for its client could break a message that another thread writes to that client.
2. If several blocks have been entered, the earliest of their deadlines counts.
3. A deadline ends waits. A call raises TimeoutError if it would have to receive or send after the
   deadline; what has been received already can still be read.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..core.deadline import Deadline
from ..core.kinds import check_seconds
from .states import Life
from .timeouts import Due

if TYPE_CHECKING:
    from .connection import Connection
    from .link import Link


class Block:
    """A context manager that bounds the reads and writes of the thread which has entered it.

    One thread may enter it several times, also within itself. Each entry has a deadline of its own,
    `seconds` later. Entering returns that `Deadline`.
    """

    __slots__ = ("_entered", "_link", "_name", "_seconds")

    def __init__(self, link: Link, seconds: float, name: str) -> None:
        """`name` is the name of the limit in its TimeoutError."""
        self._link, self._seconds, self._name = link, seconds, name
        self._entered: list[Due] = []

    def __enter__(self) -> Deadline:
        deadline, link = Deadline(self._seconds), self._link
        assert deadline.at is not None
        due = Due(deadline.at, self._name, self._seconds, threading.get_ident())
        self._entered.append(due)
        with link.lock:
            if link.life is not Life.CLOSED:
                link.wire.add_deadline(due, link.peer)
                link.choose_way_locked()
        return deadline

    def __exit__(self, *_: object) -> None:
        due, link = self._entered.pop(), self._link
        with link.lock:
            link.wire.remove_deadline(due)


def within(link: Link, seconds: float, name: str) -> Block:
    """Return a block with a deadline.

    TypeError or ValueError unless `seconds` is 0 or more; ValueError if a handler reads the socket
    itself, since netkit does not see its calls.
    """
    check_seconds(name, seconds)
    if link.wire.opaque:
        text = f"no {name} for a socket that its handler reads itself: use the socket's settimeout"
        raise ValueError(text)
    return Block(link, seconds, name)


def deadline(conn: Connection[Any], seconds: float | None) -> AbstractContextManager[Deadline]:
    """Return a context manager that bounds all reads and writes of its block together.

    The deadline is `seconds` after the block was entered. Then a call in the block that would have
    to receive or send raises TimeoutError (``deadline: ...``). This holds for reads, writes,
    `sendfile`, `pipe_to`, `start_tls` and `end`, however many there are and however slowly bytes
    arrive, but not for `close`, which waits `linger_seconds`. Other limits apply as well, and of
    nested blocks the earliest deadline counts. Entering returns an object whose `remaining()` is
    the seconds left. The end of the block raises nothing by itself.

    A read that has met its deadline loses nothing, and the connection is still good. A write that
    has sent a part is broken, as of `write`. Catch the error outside the block to send the peer a
    last word. With 0 seconds calls do not wait: a read returns what has arrived, or raises. With
    None there is no deadline.

    A deadline bounds the calls of the thread that has entered the block; other threads may write
    meanwhile. It may be noticed late, by up to a tenth of the time that was left when the wait
    began. TypeError or ValueError for an invalid or negative number; ValueError for a connection
    whose handler reads the socket itself. Thread-safe; nothing happens after the close.
    """
    if seconds is None:
        return contextlib.nullcontext(Deadline(None))
    return conn._link.within(seconds, "deadline")
