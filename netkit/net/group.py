"""Groups of connections that get the same messages."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from ..core.generic import DataT
from .connection import Connection
from .forks import renew_in_children
from .link import FREE_THREADED
from .output import as_bytes
from .posting import outbox
from .transport import Writable

# Each send releases the GIL. If several threads posted to many members at once, they would take the
# GIL from each other at every send, and would be up to four times as slow. So they post in turn. A
# thread that has waited for so long (seconds) posts nevertheless: only speed depends on the lock.
LONGEST_TURN = 1.0
_turn = threading.RLock()
renew_in_children(sys.modules[__name__], "_turn")

# How many members a group has before it first looks for closed ones (see `Group.add`).
_FEWEST = 16


class Group:
    """Connections that get the same messages: a chat room, or the subscribers of a topic.

    Any thread may call the methods, and so may a signal handler. None of them waits for a peer. A
    connection may be in many groups. Once it is closed, it is no member any more.
    """

    def __init__(self, members: Iterable[Connection[Any]] = ()) -> None:
        # The keys are the members, in the order in which they came. Each method uses only single
        # calls of the dictionary, which are atomic, also without the GIL.
        self._members: dict[Connection[Any], None] = {}
        self._most = _FEWEST  # with more members, `add` looks for closed ones
        for conn in members:
            self.add(conn)

    def add(self, conn: Connection[Any]) -> None:
        """Make `conn` a member, if it is none yet. TypeError unless it is a `Connection`."""
        if not isinstance(conn, Connection):
            raise TypeError(f"a member of a group is a Connection, not {conn!r}")
        self._members.setdefault(conn)
        if len(self._members) > self._most:
            members = list(self)
            self._most = max(_FEWEST, 2 * len(members))

    def discard(self, conn: Connection[Any]) -> None:
        """Remove `conn`; do nothing if it is no member."""
        self._members.pop(conn, None)

    @contextlib.contextmanager
    def member(self, conn: Connection[DataT]) -> Iterator[Connection[DataT]]:
        """Make `conn` a member for as long as the ``with`` block runs."""
        self.add(conn)
        try:
            yield conn
        finally:
            self.discard(conn)

    def post(
        self, data: Writable, but: Connection[Any] | None = None, encoding: str = "utf-8"
    ) -> int:
        """Call `Connection.post` of all members except `but`; return how many took the message.

        Text is encoded, and bytes that may change are copied, once for all members. A member that
        can be sent nothing more (closed, ended, reset, or disconnected since its outbox is full)
        leaves the group. One whose full outbox refuses the message stays.
        """
        payload = bytes(as_bytes(data, encoding))
        has_turn = not FREE_THREADED and _turn.acquire(timeout=LONGEST_TURN)
        try:
            return self._post(payload, but)
        finally:
            if has_turn:
                _turn.release()

    def _post(self, payload: bytes, but: Connection | None) -> int:
        count = 0
        for conn in list(self._members):
            if conn is not but:
                try:
                    count += (conn._output.outbox or outbox(conn)).offer(payload)
                except OSError:
                    self.discard(conn)
        return count

    def __iter__(self) -> Iterator[Connection[Any]]:
        """Iterate over the present members: those who come or go meanwhile change nothing."""
        for conn in list(self._members):
            if conn.closed:
                self.discard(conn)
        return iter(list(self._members))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, conn: object) -> bool:
        return isinstance(conn, Connection) and conn in self._members and not conn.closed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"
