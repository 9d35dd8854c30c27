"""netkit: a blocking TCP toolkit with one thread for each client.

    import netkit

    def shout(conn):
        for line in conn.lines():
            conn.write(line.upper() + "\\n")

    netkit.serve(shout, port=8080, host="127.0.0.1")

The names below are the public ones. Each is imported when it is first used, so that importing
netkit costs next to nothing, and the command line can take care of Ctrl+C before it imports more.
"""

import sys as _sys

if _sys.version_info < (3, 10):  # pragma: no cover - no installer has refused it  # noqa: UP036
    _text = "netkit needs Python 3.10 or later, not %d.%d" % _sys.version_info[:2]  # noqa: UP031
    if _sys.argv[:1] == ["-m"]:
        raise SystemExit("netkit: error: " + _text)
    raise ImportError(_text)

TYPE_CHECKING = False  # for type checkers, which know the name; importing anything takes time

__version__ = "0.1.0"

# The module of each public name.
_MODULES = {
    "client.connect": "connect",
    "client.happy_eyeballs": "Cancel",
    "client.signatures": "ClientOptions",
    "core.addresses": "SocketAddress is_ip is_ipv4 is_ipv6",
    "core.blocklist": "BlockList",
    "core.decoder": "IncrementalDecoder",
    "core.encodings": "to_bytes to_str",
    "core.errors": (
        "CancelledError ConnectError ConnectionClosedError FramingError HandshakeError "
        "IncompleteReadError InvalidTextError KilledError LineTooLongError LocalError "
        "MessageTooLongError MissingExtraError NetkitError OutboxFullError PeerError "
        "ProxyHeaderError ServerStateError TlsConfigError TlsError TruncatedError "
        "UnknownEncodingError WorkersFailedError WriteAfterEndError"
    ),
    "core.events": (
        "AcceptFailed AcceptPaused AcceptResumed AttemptFailed AttemptStarted ClientFailed "
        "ClientRefused ConnectionClosed ConnectionOpened Event FrontEnded HandlerFailed "
        "HandlerResumed HandlerStuck HandshakeInAccept HookFailed KeyReadable ListLoaded "
        "ListenerLost Listening NothingToReload ObserverFailed OperatorCommand Ready Refused "
        "Refusing ReloadBegun ReloadEnded ReloadFailed Reloaded Report Resolved ServingOn "
        "SettingsKept SettingsReloaded SignalsUnavailable StatusReported StopDelayed Stopped "
        "Stopping Unlimited WorkerEnded WorkerFailed WorkersReady WorkersStopping subscribe"
    ),
    "core.framing": "Delimiter FixedSize Framing LengthPrefix Netstrings VarintPrefix",
    "core.proxyheader": "ProxyHeader ProxyHeaderParser",
    "core.proxytlvs": "ProxyTls",
    "net.bound": "BoundSocket",
    "net.connection": "Connection",
    "net.gate": "gate_active",
    "net.group": "Group",
    "net.outbox": "Outbox",
    "net.passing": "receive_connection send_connection",
    "net.relay": "Relayed relay",
    "net.unix": "PeerCredentials",
    "ops.metrics": "metrics_text",
    "ops.run": "run serve",
    "process.service": "RunReport",
    "process.supervisor": "Workers",
    "server.handlers": "EchoHandler GreeterHandler Handler LoggerHandler",
    "server.log_config": "configure_logging",
    "server.registry": "StopReport",
    "server.server": "Server create_server",
    "server.signatures": "ServerOptions",
    "tls.stream": "TlsStream",
}
_PUBLIC_MODULES = ("events", "logs")
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_MODULE_OF)]

if TYPE_CHECKING:
    from . import events as events
    from . import logs as logs
    from .client.connect import connect as connect
    from .client.happy_eyeballs import Cancel as Cancel
    from .client.signatures import ClientOptions as ClientOptions
    from .core.addresses import SocketAddress as SocketAddress
    from .core.addresses import is_ip as is_ip
    from .core.addresses import is_ipv4 as is_ipv4
    from .core.addresses import is_ipv6 as is_ipv6
    from .core.blocklist import BlockList as BlockList
    from .core.decoder import IncrementalDecoder as IncrementalDecoder
    from .core.encodings import to_bytes as to_bytes
    from .core.encodings import to_str as to_str
    from .core.errors import CancelledError as CancelledError
    from .core.errors import ConnectError as ConnectError
    from .core.errors import ConnectionClosedError as ConnectionClosedError
    from .core.errors import FramingError as FramingError
    from .core.errors import HandshakeError as HandshakeError
    from .core.errors import IncompleteReadError as IncompleteReadError
    from .core.errors import InvalidTextError as InvalidTextError
    from .core.errors import KilledError as KilledError
    from .core.errors import LineTooLongError as LineTooLongError
    from .core.errors import LocalError as LocalError
    from .core.errors import MessageTooLongError as MessageTooLongError
    from .core.errors import MissingExtraError as MissingExtraError
    from .core.errors import NetkitError as NetkitError
    from .core.errors import OutboxFullError as OutboxFullError
    from .core.errors import PeerError as PeerError
    from .core.errors import ProxyHeaderError as ProxyHeaderError
    from .core.errors import ServerStateError as ServerStateError
    from .core.errors import TlsConfigError as TlsConfigError
    from .core.errors import TlsError as TlsError
    from .core.errors import TruncatedError as TruncatedError
    from .core.errors import UnknownEncodingError as UnknownEncodingError
    from .core.errors import WorkersFailedError as WorkersFailedError
    from .core.errors import WriteAfterEndError as WriteAfterEndError
    from .core.events.base import Event as Event
    from .core.events.base import ObserverFailed as ObserverFailed
    from .core.events.base import subscribe as subscribe
    from .core.events.connection import AttemptFailed as AttemptFailed
    from .core.events.connection import AttemptStarted as AttemptStarted
    from .core.events.connection import ClientFailed as ClientFailed
    from .core.events.connection import ClientRefused as ClientRefused
    from .core.events.connection import ConnectionClosed as ConnectionClosed
    from .core.events.connection import ConnectionOpened as ConnectionOpened
    from .core.events.connection import HandlerFailed as HandlerFailed
    from .core.events.connection import HandlerResumed as HandlerResumed
    from .core.events.connection import HandlerStuck as HandlerStuck
    from .core.events.connection import Refused as Refused
    from .core.events.connection import Refusing as Refusing
    from .core.events.connection import Report as Report
    from .core.events.connection import Resolved as Resolved
    from .core.events.program import FrontEnded as FrontEnded
    from .core.events.program import Ready as Ready
    from .core.events.program import ReloadBegun as ReloadBegun
    from .core.events.program import ReloadEnded as ReloadEnded
    from .core.events.program import StopDelayed as StopDelayed
    from .core.events.server import AcceptFailed as AcceptFailed
    from .core.events.server import AcceptPaused as AcceptPaused
    from .core.events.server import AcceptResumed as AcceptResumed
    from .core.events.server import HandshakeInAccept as HandshakeInAccept
    from .core.events.server import HookFailed as HookFailed
    from .core.events.server import KeyReadable as KeyReadable
    from .core.events.server import ListenerLost as ListenerLost
    from .core.events.server import Listening as Listening
    from .core.events.server import ListLoaded as ListLoaded
    from .core.events.server import NothingToReload as NothingToReload
    from .core.events.server import OperatorCommand as OperatorCommand
    from .core.events.server import Reloaded as Reloaded
    from .core.events.server import ReloadFailed as ReloadFailed
    from .core.events.server import ServingOn as ServingOn
    from .core.events.server import SettingsKept as SettingsKept
    from .core.events.server import SettingsReloaded as SettingsReloaded
    from .core.events.server import SignalsUnavailable as SignalsUnavailable
    from .core.events.server import StatusReported as StatusReported
    from .core.events.server import Stopped as Stopped
    from .core.events.server import Stopping as Stopping
    from .core.events.server import Unlimited as Unlimited
    from .core.events.server import WorkerEnded as WorkerEnded
    from .core.events.server import WorkerFailed as WorkerFailed
    from .core.events.server import WorkersReady as WorkersReady
    from .core.events.server import WorkersStopping as WorkersStopping
    from .core.framing import Delimiter as Delimiter
    from .core.framing import FixedSize as FixedSize
    from .core.framing import Framing as Framing
    from .core.framing import LengthPrefix as LengthPrefix
    from .core.framing import Netstrings as Netstrings
    from .core.framing import VarintPrefix as VarintPrefix
    from .core.proxyheader import ProxyHeader as ProxyHeader
    from .core.proxyheader import ProxyHeaderParser as ProxyHeaderParser
    from .core.proxytlvs import ProxyTls as ProxyTls
    from .net.bound import BoundSocket as BoundSocket
    from .net.connection import Connection as Connection
    from .net.gate import gate_active as gate_active
    from .net.group import Group as Group
    from .net.outbox import Outbox as Outbox
    from .net.passing import receive_connection as receive_connection
    from .net.passing import send_connection as send_connection
    from .net.relay import Relayed as Relayed
    from .net.relay import relay as relay
    from .net.unix import PeerCredentials as PeerCredentials
    from .ops.metrics import metrics_text as metrics_text
    from .ops.run import run as run
    from .ops.run import serve as serve
    from .process.service import RunReport as RunReport
    from .process.supervisor import Workers as Workers
    from .server.handlers import EchoHandler as EchoHandler
    from .server.handlers import GreeterHandler as GreeterHandler
    from .server.handlers import Handler as Handler
    from .server.handlers import LoggerHandler as LoggerHandler
    from .server.log_config import configure_logging as configure_logging
    from .server.registry import StopReport as StopReport
    from .server.server import Server as Server
    from .server.server import create_server as create_server
    from .server.signatures import ServerOptions as ServerOptions
    from .tls.stream import TlsStream as TlsStream

else:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF and name not in _PUBLIC_MODULES:
            raise AttributeError(f"module 'netkit' has no attribute {name!r}")
        from importlib import import_module

        if name in _PUBLIC_MODULES:
            return import_module(f".{name}", __name__)
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> "list[str]":
    return [*__all__, *_PUBLIC_MODULES]
