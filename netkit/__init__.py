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
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "addresses": ("SocketAddress", "is_ip", "is_ipv4", "is_ipv6"),
    "attempts": ("Cancel",),
    "blocklist": ("BlockList",),
    "bound": ("BoundSocket",),
    "client": ("connect",),
    "connection": ("Connection",),
    "encodings": ("IncrementalDecoder", "to_bytes", "to_str"),
    "errors": (
        "CancelledError",
        "ConnectError",
        "ConnectionClosedError",
        "FramingError",
        "HandshakeError",
        "IncompleteReadError",
        "LineTooLongError",
        "LocalError",
        "MessageTooLongError",
        "MissingExtraError",
        "NetkitError",
        "PeerError",
        "ServerStateError",
        "TlsConfigError",
        "TlsError",
        "TruncatedError",
        "UnknownEncodingError",
        "WorkersFailedError",
        "WriteAfterEndError",
    ),
    "events": ("subscribe",),
    "framing": (
        "Delimiter",
        "FixedSize",
        "Framing",
        "LengthPrefix",
        "Netstrings",
        "VarintPrefix",
    ),
    "handlers": ("EchoHandler", "GreeterHandler", "Handler", "LoggerHandler"),
    "handover": ("receive_connection", "send_connection"),
    "logconfig": ("configure_logging",),
    "registry": ("StopReport",),
    "relaying": ("Relayed", "relay"),
    "running": ("run", "serve"),
    "server": ("Server", "create_server"),
    "signals": ("RunReport",),
    "tls": ("TlsStream",),
    "unixsocket": ("PeerCredentials",),
    "workers": ("Workers",),
}
_MODULES = ("events", "logs")  # public as they are
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *sorted(_ROOM_OF)]

if TYPE_CHECKING:
    from . import events as events
    from . import logs as logs
    from .addresses import SocketAddress as SocketAddress
    from .addresses import is_ip as is_ip
    from .addresses import is_ipv4 as is_ipv4
    from .addresses import is_ipv6 as is_ipv6
    from .attempts import Cancel as Cancel
    from .blocklist import BlockList as BlockList
    from .bound import BoundSocket as BoundSocket
    from .client import connect as connect
    from .connection import Connection as Connection
    from .encodings import IncrementalDecoder as IncrementalDecoder
    from .encodings import to_bytes as to_bytes
    from .encodings import to_str as to_str
    from .errors import CancelledError as CancelledError
    from .errors import ConnectError as ConnectError
    from .errors import ConnectionClosedError as ConnectionClosedError
    from .errors import FramingError as FramingError
    from .errors import HandshakeError as HandshakeError
    from .errors import IncompleteReadError as IncompleteReadError
    from .errors import LineTooLongError as LineTooLongError
    from .errors import LocalError as LocalError
    from .errors import MessageTooLongError as MessageTooLongError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import NetkitError as NetkitError
    from .errors import PeerError as PeerError
    from .errors import ServerStateError as ServerStateError
    from .errors import TlsConfigError as TlsConfigError
    from .errors import TlsError as TlsError
    from .errors import TruncatedError as TruncatedError
    from .errors import UnknownEncodingError as UnknownEncodingError
    from .errors import WorkersFailedError as WorkersFailedError
    from .errors import WriteAfterEndError as WriteAfterEndError
    from .events import subscribe as subscribe
    from .framing import Delimiter as Delimiter
    from .framing import FixedSize as FixedSize
    from .framing import Framing as Framing
    from .framing import LengthPrefix as LengthPrefix
    from .framing import Netstrings as Netstrings
    from .framing import VarintPrefix as VarintPrefix
    from .handlers import EchoHandler as EchoHandler
    from .handlers import GreeterHandler as GreeterHandler
    from .handlers import Handler as Handler
    from .handlers import LoggerHandler as LoggerHandler
    from .handover import receive_connection as receive_connection
    from .handover import send_connection as send_connection
    from .logconfig import configure_logging as configure_logging
    from .registry import StopReport as StopReport
    from .relaying import Relayed as Relayed
    from .relaying import relay as relay
    from .running import run as run
    from .running import serve as serve
    from .server import Server as Server
    from .server import create_server as create_server
    from .signals import RunReport as RunReport
    from .tls import TlsStream as TlsStream
    from .unixsocket import PeerCredentials as PeerCredentials
    from .workers import Workers as Workers


def __getattr__(name: str) -> "Any":
    if name not in _ROOM_OF and name not in _MODULES:
        raise AttributeError(f"module 'netkit' has no attribute {name!r}")
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{name}", __name__)
    value = getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> "list[str]":
    return [*__all__, *_MODULES]
