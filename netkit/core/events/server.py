"""The events of a server: its listeners, its settings, its stop, and faults of the program."""

from __future__ import annotations

from .base import ERROR, WARNING, Event
from .process import time_limit


def _rules(number: int) -> str:
    return f"{number} rule{'' if number == 1 else 's'}"


class Listening(Event):
    """The server is bound to `address` (``127.0.0.1:8080``) and accepts clients."""

    address: str

    def _text(self) -> str:
        every = self.address.startswith(("0.0.0.0:", "[::]:"))
        return f"listening on {self.address}{' (every address)' if every else ''}"


class Unlimited(Event):
    """A server without limits listens for other machines at `address`. Once for each server."""

    address: str
    line = (
        "{address} can be reached from other machines, and no limit is set; "
        "profile='public' (--profile public) sets limits for the Internet"
    )


class ListenerLost(Event):
    """The listening socket failed without `server_close`. The server accepts no more clients."""

    error: BaseException
    level = ERROR
    line = "no new clients any more: {error}"


class AcceptFailed(Event):
    """One client could not be accepted, by its own fault (a failed TLS handshake, for example)."""

    error: BaseException
    level = WARNING
    line = "a client could not be accepted: {error}"


class AcceptPaused(Event):
    """The machine is short of a resource, and accepting pauses. Emitted once in an episode."""

    error: BaseException
    level = WARNING
    line = "no new clients for the moment: {error}"


class AcceptResumed(Event):
    """The server accepts clients again, `seconds` after it paused."""

    seconds: float
    level = WARNING
    line = "accepting clients again, after {seconds:.1f} s"


class HandshakeInAccept(Event):
    """`hook` (`get_request`) does TLS handshakes, during which no other client is accepted.

    Emitted once for each server.
    """

    hook: str
    level = WARNING
    line = (
        "{hook} does TLS handshakes, so that one silent client keeps all others waiting: "
        "use the option tls, or wrap_socket(..., do_handshake_on_connect=False)"
    )


class HookFailed(Event):
    """An overridden method of the server (`service_actions`, `handle_error`, ...) raised."""

    hook: str
    error: BaseException
    level = ERROR
    with_traceback = True
    line = "{hook} failed: {error}"


class ListLoaded(Event):
    """A server begins to listen with a list of addresses, which has `rules` rules from a file."""

    name: str
    rules: int
    path: str

    def _text(self) -> str:
        return f"{self.name}: {_rules(self.rules)} from {self.path}"


class KeyReadable(Event):
    """Every user of this machine may read the private key in the file `name`. Once for each file.

    Clients load keys, too, so `server` is always None.
    """

    name: str
    level = WARNING
    line = "every user of this machine can read the key file {name!r}: chmod o-r"


class SettingsReloaded(Event):
    """The files that `what` names (``TLS``, ``the list 'deny'``) have been read again.

    `rules` is the number of rules that a list has now, and `before` the number that it had. Both
    are None for anything but a list.
    """

    what: str
    rules: int | None = None
    before: int | None = None

    def _text(self) -> str:
        rules = "" if self.rules is None else f": {_rules(self.rules)} (were {self.before})"
        return f"{self.what} reloaded{rules}"


class SettingsKept(Event):
    """`what` could not be read again, or was invalid. The server keeps the old setting."""

    what: str
    error: BaseException
    level = ERROR
    line = "{what} not reloaded, the old one stays: {error}"


class Stopping(Event):
    """The server drains: `connections` are open and have `timeout` seconds to finish.

    `timeout` is None if there is no limit.
    """

    connections: int
    timeout: float | None

    def _text(self) -> str:
        return f"stopping: {self.connections} connected, {time_limit(self.timeout)}"


class Stopped(Event):
    """The server has stopped. The counts are those of `StopReport`."""

    finished: int
    cut: int
    line = "stopped: {finished} finished, {cut} cut"
