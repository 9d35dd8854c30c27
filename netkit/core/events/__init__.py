"""The events of servers and clients, one class each, and how to observe them.

Each class has the fields of its event, the level of its log record and the text of its log line.
docs/events.md describes all events for users.
"""

from .base import Event as Event
from .base import Observer as Observer
from .base import ObserverFailed as ObserverFailed
from .base import emit as emit
from .base import is_wanted as is_wanted
from .base import last_resort as last_resort
from .base import subscribe as subscribe
from .client import AttemptFailed as AttemptFailed
from .client import AttemptStarted as AttemptStarted
from .client import Resolved as Resolved
from .connection import ClientFailed as ClientFailed
from .connection import ClientRefused as ClientRefused
from .connection import ConnectionClosed as ConnectionClosed
from .connection import ConnectionOpened as ConnectionOpened
from .connection import HandlerFailed as HandlerFailed
from .connection import Refused as Refused
from .connection import Refusing as Refusing
from .connection import Report as Report
from .connection import show_listeners as show_listeners
from .process import NothingToReload as NothingToReload
from .process import Reloaded as Reloaded
from .process import ReloadFailed as ReloadFailed
from .process import ServingOn as ServingOn
from .process import SignalsUnavailable as SignalsUnavailable
from .process import WorkerEnded as WorkerEnded
from .process import WorkerFailed as WorkerFailed
from .process import WorkersReady as WorkersReady
from .process import WorkersStopping as WorkersStopping
from .server import AcceptFailed as AcceptFailed
from .server import AcceptPaused as AcceptPaused
from .server import AcceptResumed as AcceptResumed
from .server import HandshakeInAccept as HandshakeInAccept
from .server import HookFailed as HookFailed
from .server import KeyReadable as KeyReadable
from .server import ListenerLost as ListenerLost
from .server import Listening as Listening
from .server import ListLoaded as ListLoaded
from .server import SettingsKept as SettingsKept
from .server import SettingsReloaded as SettingsReloaded
from .server import Stopped as Stopped
from .server import Stopping as Stopping
from .server import Unlimited as Unlimited
