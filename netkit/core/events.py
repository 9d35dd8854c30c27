"""Events of servers and connections, as data, and the one place where they are emitted.

The server emits events, and observers subscribe to them. The log is such an observer, attached from
outside. Rules:

1. An observer runs in the thread in which the thing happened (a client's, the acceptor's), so it
   should be quick. No lock of netkit's is held meanwhile, so it may stop the server or connect to
   it.
2. What an observer raises harms neither netkit nor the other observers. The first exception of each
   observer is an event, `ObserverFailed`; the later ones are dropped.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .encodings import printable


class Listening(NamedTuple):
    """The server is bound to `address` (``127.0.0.1:8080``) and accepts clients."""

    address: str


class Unlimited(NamedTuple):
    """A server listens for other machines at `address`, and has no limit; once for each server."""

    address: str


class ConnectionOpened(NamedTuple):
    """A client has been accepted. `id` is `Connection.id`, `peer` is its address, `local` ours."""

    id: int
    peer: str
    local: str = ""


class ConnectionClosed(NamedTuple):
    """A connection is over. The byte counts are None where a handler used the bare socket."""

    id: int
    peer: str
    bytes_read: int | None
    bytes_written: int | None
    seconds: float
    local: str = ""


class ClientFailed(NamedTuple):
    """A client hung up, went silent or sent what cannot be accepted, and its handler let it end."""

    id: int
    peer: str
    error: BaseException
    local: str = ""


class HandlerFailed(NamedTuple):
    """A handler raised: a fault of the program, logged with its traceback."""

    id: int
    peer: str
    error: BaseException
    local: str = ""


class HookFailed(NamedTuple):
    """An overridden method of the server (`service_actions`, `handle_error`, ...) raised."""

    hook: str
    error: BaseException


class ObserverFailed(NamedTuple):
    """An observer of these events raised. Emitted once for each observer, and not to itself."""

    observer: str
    error: BaseException


class HandshakeInAccept(NamedTuple):
    """`hook` (`get_request`) does TLS handshakes, and no client is accepted meanwhile.

    Once for each server.
    """

    hook: str


class AcceptFailed(NamedTuple):
    """One client could not be accepted, by its own fault (a failed TLS handshake)."""

    error: BaseException


class AcceptPaused(NamedTuple):
    """The machine has run out of something; accepting goes on after a pause. Once per episode."""

    error: BaseException


class AcceptResumed(NamedTuple):
    """Accepting works again, `seconds` after it was paused."""

    seconds: float


class ListenerLost(NamedTuple):
    """The listening socket went away without `server_close`; no client is accepted any more."""

    error: BaseException


class ClientRefused(NamedTuple):
    """A client was refused, for `reason`, the name of an option. It has cost no thread.

    `remote` and `local`: the `SocketAddress` of each end, None for a Unix socket.
    """

    peer: str
    reason: str
    remote: Any
    local: Any


class Refusing(NamedTuple):
    """The first of an episode: `reason` keeps clients out. `waiting`: only for the time being."""

    reason: str
    peer: str
    waiting: bool


class Refused(NamedTuple):
    """An episode is over: `clients` were refused for `reason` in `seconds`."""

    reason: str
    clients: int
    seconds: float


class ListLoaded(NamedTuple):
    """A server begins to listen with a list of addresses, `name`, of so many rules from a file."""

    name: str
    rules: int
    path: str


class KeyReadable(NamedTuple):
    """Every user of this machine may read the private key in the file `name`. Once for each."""

    name: str


class SettingsReloaded(NamedTuple):
    """What the server's options name has been read again: certificates, lists of addresses.

    `rules`: how many rules a list has now, and `before`; None if it is no list.
    """

    what: str
    rules: int | None = None
    before: int | None = None


class SettingsKept(NamedTuple):
    """`what` could not be read again, or was invalid; the server keeps what it had."""

    what: str
    error: BaseException


class NothingToReload(NamedTuple):
    """SIGHUP has come, and the server has no file to read again; it serves on."""


class Resolved(NamedTuple):
    """A client has found the addresses of `host`, in the order in which they are tried."""

    host: str
    addresses: tuple[str, ...]


class AttemptStarted(NamedTuple):
    """A client tries to connect to `address`."""

    address: str


class AttemptFailed(NamedTuple):
    """A client could not connect to `address`."""

    address: str
    error: OSError


class SignalsUnavailable(NamedTuple):
    """`run` or `serve` was called off the main thread, where signals cannot be handled."""


class ServingOn(NamedTuple):
    """The program has come to its end, at Python's prompt, and `Server.start` keeps it alive."""

    address: str


class Stopping(NamedTuple):
    """The server drains: `connections` are open, and have `timeout` seconds to finish."""

    connections: int
    timeout: float | None


class Stopped(NamedTuple):
    """The server has stopped. The counts are those of `StopReport`."""

    finished: int
    cut: int


class Report(NamedTuple):
    """A line of a handler's for the log."""

    id: int
    peer: str
    text: str
    local: str = ""


class WorkersReady(NamedTuple):
    """So many worker processes accept clients: at the start, or since a change."""

    workers: int


class WorkerEnded(NamedTuple):
    """A worker process ended that was not told to; another one is started after `pause` seconds.

    `status` as `multiprocessing.Process.exitcode`: negative for a signal. None: another part of the
    program has been told.
    """

    pid: int
    status: int | None
    pause: float


class WorkerFailed(NamedTuple):
    """A worker process could not be started, or could not be trusted; another one is started.

    That is after `pause` seconds.
    """

    reason: str
    pause: float


class WorkersStopping(NamedTuple):
    """`workers` worker processes drain; their clients have `timeout` seconds to finish."""

    workers: int
    timeout: float


class Reloaded(NamedTuple):
    """`workers` new worker processes have taken over; the old ones finish with their clients."""

    workers: int


class ReloadFailed(NamedTuple):
    """New worker processes could not be started; the old ones go on as before."""

    reason: str


Event = (
    Listening
    | Unlimited
    | ConnectionOpened
    | ConnectionClosed
    | ClientFailed
    | HandlerFailed
    | HookFailed
    | HandshakeInAccept
    | ObserverFailed
    | AcceptFailed
    | AcceptPaused
    | AcceptResumed
    | ListenerLost
    | ClientRefused
    | Refusing
    | Refused
    | ListLoaded
    | KeyReadable
    | SettingsReloaded
    | SettingsKept
    | NothingToReload
    | Resolved
    | AttemptStarted
    | AttemptFailed
    | SignalsUnavailable
    | ServingOn
    | Stopping
    | Stopped
    | Report
    | WorkersReady
    | WorkerEnded
    | WorkerFailed
    | WorkersStopping
    | Reloaded
    | ReloadFailed
)
Observer = Callable[[Event], None]

__all__ = [
    "Event",
    "Observer",
    "emit",
    "subscribe",
    "AcceptFailed",
    "AcceptPaused",
    "AcceptResumed",
    "AttemptFailed",
    "AttemptStarted",
    "ClientFailed",
    "ClientRefused",
    "ConnectionClosed",
    "ConnectionOpened",
    "HandlerFailed",
    "HandshakeInAccept",
    "HookFailed",
    "KeyReadable",
    "ListLoaded",
    "ListenerLost",
    "Listening",
    "NothingToReload",
    "ObserverFailed",
    "Refused",
    "Refusing",
    "ReloadFailed",
    "Reloaded",
    "Report",
    "Resolved",
    "ServingOn",
    "SettingsKept",
    "SettingsReloaded",
    "SignalsUnavailable",
    "Stopped",
    "Stopping",
    "Unlimited",
    "WorkerEnded",
    "WorkerFailed",
    "WorkersReady",
    "WorkersStopping",
]


class _Subscription:
    """One call of `subscribe`. Two of the same observer are two."""

    __slots__ = ("observer", "unreported")

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.unreported = [True]  # emptied by the first failure: `pop` is atomic


# By the identity of the subscription, which the function that ends it keeps alive. No lock guards
# it: storing and deleting a key is atomic on every CPython, also in a signal handler that
# interrupts either.
_subscriptions: dict[int, _Subscription] = {}


def subscribe(observer: Observer) -> Callable[[], None]:
    """Call `observer` with every event from now on. Returns the function that ends it.

    Thread-safe. The function may be called more than once.
    """
    subscription = _Subscription(observer)
    _subscriptions[id(subscription)] = subscription

    def unsubscribe() -> None:
        _subscriptions.pop(id(subscription), None)

    return unsubscribe


def emit(event: Event) -> None:
    """Call every observer with `event`, and raise nothing that one of them has raised.

    But for KeyboardInterrupt and SystemExit in the main thread: there a signal handler may have
    raised them, to end the program.
    """
    _emit(event, None)


def _emit(event: Event, but_for: _Subscription | None) -> bool:
    """Whether at least one observer has been called and has not raised."""
    taken = False
    for subscription in list(_subscriptions.values()):
        if subscription is but_for:
            continue
        try:  # costs nothing, unlike contextlib.suppress: this runs for each client
            subscription.observer(event)
            taken = True
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and _in_main_thread():
                raise
            _note_failure(subscription, error)
    return taken


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _note_failure(subscription: _Subscription, error: BaseException) -> None:
    try:
        subscription.unreported.pop()
    except IndexError:  # this is not the first
        return
    else:
        name = _name_of(subscription.observer)
        if not _emit(ObserverFailed(name, error), but_for=subscription):
            last_resort(f"the observer {name} failed", error)


def _name_of(observer: Any) -> str:
    if not hasattr(observer, "__qualname__"):  # an object that can be called
        observer = type(observer)
    return f"{observer.__module__}.{observer.__qualname__}"


def last_resort(what: str, error: BaseException) -> None:
    """Write one line to standard error, since there is no observer, or the log has failed.

    As `logging` does for failures of its own: not if ``logging.raiseExceptions`` is False.
    """
    import logging  # here because programs without a server may do without

    if logging.raiseExceptions and sys.stderr is not None:
        try:
            text = printable(str(error))
            sys.stderr.write(f"netkit: {what}: {type(error).__name__}: {text}\n")
        except Exception:  # nor is standard error of any use
            return
