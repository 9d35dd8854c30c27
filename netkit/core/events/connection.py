"""The events of a connection, and of `netkit.connect` until it is connected."""

from __future__ import annotations

from typing import Any

from ..text import described, in_bytes, said
from .base import DEBUG, ERROR, WARNING, Event

_listeners_shown = False


def show_listeners(several: bool) -> None:
    """Name the listener in each message about a client, if the program has `several`."""
    global _listeners_shown
    _listeners_shown = several


def _client(event: Any) -> str:
    listener = f" to {event.local}" if _listeners_shown and event.local else ""
    return f"[{event.id}] {event.peer}{listener}"


class ConnectionOpened(Event):
    """A client has been accepted. `id` is `Connection.id`, `peer` and `local` are the addresses.

    Where a PROXY header comes first, the event follows the header. Then `via` is the address of the
    proxy, else it is empty.
    """

    id: int
    peer: str
    local: str = ""
    via: str = ""
    level = DEBUG

    def _text(self) -> str:
        return f"{_client(self)} connected" + (f" via {self.via}" if self.via else "")


class ConnectionClosed(Event):
    """A connection is over.

    `end` is why: one of `netkit.core.ends.ENDS`. `seconds` is how long it was served, from its
    registration on, and `waited` how long it took from the accept to the call of the handler.

    The byte counts are those of `Connection.bytes_read` and `bytes_written`; None if a handler used
    the bare socket, and the system does not count its bytes. `via` is the address of the proxy that
    has announced the client, and `proxy` the command of its header (``PROXY`` or ``LOCAL``); both
    are empty without a header. `tls_version`, `server_name` (which the client asked for) and
    `unique_id` (of the header) are empty if there is none.
    """

    id: int
    peer: str
    bytes_read: int | None
    bytes_written: int | None
    seconds: float
    local: str = ""
    end: str = ""
    waited: float = 0.0
    via: str = ""
    proxy: str = ""
    tls_version: str = ""
    server_name: str = ""
    unique_id: str = ""
    level = DEBUG

    def _text(self) -> str:
        if self.bytes_read is None or self.bytes_written is None:
            traffic = "bytes not counted"
        else:
            traffic = f"{in_bytes(self.bytes_read)} received, {in_bytes(self.bytes_written)} sent"
        end = f" ({self.end})" if self.end else ""
        return f"{_client(self)} closed after {self.seconds:.3f} s: {traffic}{end}"


class ClientFailed(Event):
    """A client disconnected, was silent for too long or sent invalid data.

    Its handler did not catch the exception `error`.
    """

    id: int
    peer: str
    error: BaseException
    local: str = ""

    def _text(self) -> str:
        text = described(self.error)
        if self.peer in text and not _listeners_shown:  # the error of a time limit names the client
            return f"[{self.id}] {text}"
        return f"{_client(self)}: {text}"


class HandlerFailed(Event):
    """A handler raised `error`, which is a fault of the program."""

    id: int
    peer: str
    error: BaseException
    local: str = ""
    level = ERROR
    with_traceback = True

    def _text(self) -> str:
        return f"{_client(self)}: the handler failed: {described(self.error)}"


class HandlerStuck(Event):
    """A handler has neither read nor written for `seconds`, and is in no read or write.

    `stack` has the lines of text about where it is, the innermost line of Python first; it is empty
    where they cannot be known. Emitted once; `HandlerResumed` follows when the handler goes on.
    """

    id: int
    peer: str
    seconds: float
    stack: tuple[str, ...] = ()
    local: str = ""
    level = WARNING

    def _text(self) -> str:
        return f"{_client(self)}: the handler is stuck, for {self.seconds:.1f} s so far"


class HandlerResumed(Event):
    """A handler that was stuck reads or writes again, or has ended, after `seconds`."""

    id: int
    peer: str
    seconds: float
    local: str = ""
    level = WARNING

    def _text(self) -> str:
        return f"{_client(self)}: the handler goes on, after {self.seconds:.1f} s"


class Report(Event):
    """A line that a handler writes to the log."""

    id: int
    peer: str
    text: str
    local: str = ""
    line = "[{id}] {text}"


class ClientRefused(Event):
    """A client was refused before its handler was called.

    `reason` is the name of an option. `remote` and `local` are the `SocketAddress` of each end, or
    None for a Unix socket. `id` is that of the connection if a proxy has introduced the client;
    then `ConnectionClosed` follows. Else there is no connection, and it is 0.
    """

    peer: str
    reason: str
    remote: Any
    local: Any
    id: int = 0
    level = DEBUG
    line = "{peer} refused: {reason}"


class Refusing(Event):
    """The first client of an episode is refused for `reason`, or has to wait if `waiting`.

    `reason` is the name of an option. `peer` is empty if clients wait.
    """

    reason: str
    peer: str
    waiting: bool
    level = WARNING

    def _text(self) -> str:
        effect = "new clients wait" if self.waiting else f"refusing clients, {self.peer} first"
        return f"{self.reason}: {effect}"


class Refused(Event):
    """An episode is over: `clients` were refused for `reason` in `seconds`."""

    reason: str
    clients: int
    seconds: float
    level = WARNING

    def _text(self) -> str:
        duration = f" in {self.seconds:.1f} s" if self.clients > 1 else ""
        return f"{self.reason}: {self.clients} refused{duration}"


class Resolved(Event):
    """A client has found the addresses of `host`, in the order in which they are tried."""

    host: str
    addresses: tuple[str, ...]
    level = DEBUG

    def _text(self) -> str:
        return f"{self.host} is {', '.join(self.addresses)}"


class AttemptStarted(Event):
    """A client tries to connect to `address`."""

    address: str
    level = DEBUG
    line = "connecting to {address}"


class AttemptFailed(Event):
    """A client could not connect to `address`."""

    address: str
    error: OSError
    level = DEBUG

    def _text(self) -> str:
        return f"{self.address}: {said(self.error)}"
