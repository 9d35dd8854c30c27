"""The states of a connection. Each of its three parts is in exactly one state at a time.

Input, what a read does:

======== ============================================================= ==========================
state    a read                                                        set by
======== ============================================================= ==========================
OPEN     waits for input
DRAINING reads on while a message is incomplete, or input has arrived  a stop, `end_input`
DRAINED  returns the end of input                                      a read in DRAINING
SHUT     reads what arrived before the receiving side was shut down    `end_input`, `interrupt`
EMPTIED  returns the end of input                                      a read in SHUT
ENDED    returns the end of input                                      a read: the peer has ended
======== ============================================================= ==========================

Output, what a write does, and how a close ends our side:

========= =========================== ==================================== =======================
state     a write                     a close                              set by
========= =========================== ==================================== =======================
OPEN      sends                       sends the rest and the end of output
ENDED     raises WriteAfterEndError   has nothing to send                  `end`
ABANDONED sends                       sends the rest, and then a reset     `fail`
BROKEN    raises the error once more  sends a reset                        a write that has failed
REFUSED   raises the error once more  sends the end of output              a failed TLS handshake
========= =========================== ==================================== =======================

Life: OPEN, CLOSING (`close` has begun), FINISHED (only the descriptor is left to be closed), CLOSED
(the descriptor is closed, or the last thread that uses the socket is about to close it). It only
moves forward.

A connection that ends early has one reason: the error that `interrupt` was given, or else a cut. A
cut prevails over an error.
"""

from __future__ import annotations

from enum import Enum


class InputState(Enum):
    """The state of the input; see the table above."""

    OPEN = "open"
    DRAINING = "draining"
    DRAINED = "drained"
    SHUT = "shut"
    EMPTIED = "emptied"
    ENDED = "ended"

    def drained(self) -> InputState:
        """The state after a request to read no further message."""
        return _ON_DRAIN.get(self, self)

    def shut(self) -> InputState:
        """The state after this side has shut down the receiving side of the socket."""
        return _ON_SHUT.get(self, self)

    def ended(self) -> InputState:
        """The state after the socket has returned the end of input."""
        return _ON_END.get(self, self)

    def is_shut(self) -> bool:
        """Whether this side has shut down the receiving side of the socket."""
        return self in (InputState.SHUT, InputState.EMPTIED)

    def is_over(self) -> bool:
        """Whether a read returns the end of input without looking at the socket."""
        return self in _OVER


_ON_DRAIN = {InputState.OPEN: InputState.DRAINING, InputState.ENDED: InputState.DRAINED}
_ON_SHUT = {InputState.OPEN: InputState.SHUT, InputState.DRAINING: InputState.SHUT}
_ON_END = {
    InputState.OPEN: InputState.ENDED,
    InputState.DRAINING: InputState.DRAINED,
    InputState.SHUT: InputState.EMPTIED,
}
_OVER = (InputState.DRAINED, InputState.EMPTIED, InputState.ENDED)


class OutputState(Enum):
    """The state of the output; see the table above."""

    OPEN = "open"
    ENDED = "ended"
    ABANDONED = "abandoned"
    BROKEN = "broken"
    REFUSED = "refused"

    def is_incomplete(self) -> bool:
        """Whether what was written is not whole, which the peer learns by a reset."""
        return self in (OutputState.ABANDONED, OutputState.BROKEN)


class Life(Enum):
    """How far the close of a connection has come; see above."""

    OPEN = "open"
    CLOSING = "closing"
    FINISHED = "finished"
    CLOSED = "closed"
