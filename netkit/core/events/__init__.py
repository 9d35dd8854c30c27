"""The events of servers and clients, one class each, and how to observe them.

Each class has the fields of its event, the level of its log record and the text of its log line.
docs/events.md describes all events for users.
"""

from .base import (
    Event,
    Observer,
    ObserverFailed,
    emit,
    subscribe,
)
from .base import last_resort as last_resort
from .client import (
    AttemptFailed,
    AttemptStarted,
    Resolved,
)
from .connection import (
    ClientFailed,
    ClientRefused,
    ConnectionClosed,
    ConnectionOpened,
    HandlerFailed,
    Refused,
    Refusing,
    Report,
)
from .connection import show_listeners as show_listeners
from .process import (
    NothingToReload,
    Reloaded,
    ReloadFailed,
    ServingOn,
    SignalsUnavailable,
    WorkerEnded,
    WorkerFailed,
    WorkersReady,
    WorkersStopping,
)
from .server import (
    AcceptFailed,
    AcceptPaused,
    AcceptResumed,
    HandshakeInAccept,
    HookFailed,
    KeyReadable,
    ListenerLost,
    Listening,
    ListLoaded,
    SettingsKept,
    SettingsReloaded,
    Stopped,
    Stopping,
    Unlimited,
)

__all__ = [
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
    "Event",
    "HandlerFailed",
    "HandshakeInAccept",
    "HookFailed",
    "KeyReadable",
    "ListLoaded",
    "ListenerLost",
    "Listening",
    "NothingToReload",
    "Observer",
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
