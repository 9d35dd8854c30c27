"""The state of a client, in the words of an operator."""

from __future__ import annotations

from ..net.connection import Connection
from ..net.states import Life

STATES = ("proxy", "handshake", "serving", "killed", "closing", "held")
"""All states. The handler of a client that an operator has killed still runs.

A held client has been accepted, and has no connection yet (`when_full`).
"""


def state_of(connection: Connection) -> str:
    """Return the state of an open connection. From any thread."""
    link = connection._link
    if link.life is not Life.OPEN:
        return "closing"
    if getattr(connection, "expects_proxy", False):
        return "proxy"
    if link.ending == "killed":
        return "killed"
    return "handshake" if link.transport.handshaking else "serving"
