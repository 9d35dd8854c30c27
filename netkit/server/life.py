"""The states that a server goes through, and the lock that its parts share for them."""

from __future__ import annotations

import threading
from enum import Enum


class State(Enum):
    """`Server.listen` leads from CLOSED back to LISTENING."""

    NEW = "not bound"
    LISTENING = "listening"  # clients are accepted while it serves, else the kernel queues them
    DRAINING = "stopping"  # no new clients; the connected ones finish
    CLOSED = "closed"


class Life:
    """The state of one server. Its parts change it under `changed`.

    `changed` guards the attributes and is notified when one of them changes. It comes before all
    other locks of a server. It is re-entrant, since a signal handler may stop the server while its
    thread holds it.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.state = State.NEW
        self.opener: int | None = None
        """The thread that is in `listen`, by its identifier."""

    def enter(self, state: State) -> None:
        with self.changed:
            self.state = state
            self.changed.notify_all()

    def end_in_child(self) -> None:
        """In a forked child, where a thread of the parent may hold the lock forever."""
        self.changed = threading.Condition()
        self.opener = None
        self.state = State.CLOSED
