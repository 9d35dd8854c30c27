"""The package from outside: its names, what importing it costs, and the order of its rooms."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE, ROOT

import netkit

ROOMS = {path.stem: path for path in (ROOT / "netkit").glob("*.py")}

# From the bottom up: a room imports only from those before it.
ORDER = [
    *("errors", "deadline", "forks", "buffer", "addresses", "endpoints", "encodings"),
    *(
        "addressrules",
        "listfile",
        "blocklist",
        "profiles",
        "tlsoptions",
        "options",
        "events",
        "reading",
        "framing",
    ),
    *("sockets", "waker", "timing", "alerts", "certificates", "records", "agreed", "tls"),
    *("listener", "binding", "unixsocket", "bound", "logs", "logconfig"),
    *("stream", "writing", "securing", "bare", "connection", "handover", "relaying"),
    *("attempts", "clientoptions", "dialling", "client"),
    *("registry", "threads", "lifetimes", "stands", "accepting", "places", "numbering"),
    *("admission", "anteroom"),
    *("handlers", "adapting", "subclassing", "doorway", "settings", "serving", "listening"),
    *("stopping", "exiting", "server", "signals"),
    *("channel", "recipe", "worker", "workers", "running"),
    *("stdio", "terminal", "progress", "conversing", "arguments", "opening", "connecting"),
    *("loading", "output", "__init__", "commands", "cli", "__main__"),
]

LONGEST_MODULE = 445  # lines
LONGEST_FUNCTION = 45  # lines


def in_a_fresh_interpreter(program: str) -> str:
    """What `program` prints, with nothing else installed, and with warnings as errors."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", f"{start}\n{program}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_the_public_names_are_these() -> None:
    assert netkit.__all__ == [
        "__version__",
        "BlockList",
        "BoundSocket",
        "Cancel",
        "CancelledError",
        "ConnectError",
        "Connection",
        "ConnectionClosedError",
        "Delimiter",
        "EchoHandler",
        "FixedSize",
        "Framing",
        "FramingError",
        "GreeterHandler",
        "Handler",
        "HandshakeError",
        "IncompleteReadError",
        "IncrementalDecoder",
        "LengthPrefix",
        "LineTooLongError",
        "LocalError",
        "LoggerHandler",
        "MessageTooLongError",
        "MissingExtraError",
        "NetkitError",
        "Netstrings",
        "PeerCredentials",
        "PeerError",
        "Relayed",
        "RunReport",
        "Server",
        "ServerStateError",
        "SocketAddress",
        "StopReport",
        "TlsConfigError",
        "TlsError",
        "TlsStream",
        "TruncatedError",
        "UnknownEncodingError",
        "VarintPrefix",
        "Workers",
        "WorkersFailedError",
        "WriteAfterEndError",
        "configure_logging",
        "connect",
        "create_server",
        "is_ip",
        "is_ipv4",
        "is_ipv6",
        "receive_connection",
        "relay",
        "run",
        "send_connection",
        "serve",
        "subscribe",
        "to_bytes",
        "to_str",
    ]


def test_dir_lists_the_public_names_and_no_others() -> None:
    assert dir(netkit) == sorted([*netkit.__all__, "events", "logs"])


@pytest.mark.parametrize("name", ["events", "logs"])
def test_a_module_that_is_public_is_there_after_the_import_of_the_package(name: str) -> None:
    program = f"""
import netkit
print("netkit.{name}" in sys.modules, netkit.{name}.__name__)
"""
    assert in_a_fresh_interpreter(program) == f"False netkit.{name}\n"


@pytest.mark.parametrize("entry", ["bin/netkit", "-m netkit", "import netkit"])
def test_an_older_python_says_which_one_is_needed(entry: str, tmp_path: Path) -> None:
    """And can read what says so: nothing in that is newer than Python 3.6."""
    source = (ROOT / "netkit" / "__init__.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    ast.parse((ROOT / "netkit" / "__main__.py").read_text(), feature_version=(3, 6))
    old = "import sys; sys.version_info = (3, 8, 18, 'final', 0)"
    (tmp_path / "sitecustomize.py").write_text(old)
    python = [sys.executable, "-W", "ignore"]
    command = {
        "bin/netkit": [str(ROOT / "bin/netkit"), "--version"],
        "-m netkit": [*python, "-m", "netkit", "--version"],
        "import netkit": [*python, "-c", "import netkit"],
    }[entry]
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    *_, last = done.stderr.splitlines()
    assert "needs Python 3.10 or later, not 3.8" in last
    assert done.returncode == 1
    assert (len(done.stderr.splitlines()) == 1) == (entry != "import netkit")


def test_an_import_of_everything_gives_the_public_names() -> None:
    program = """
before = {*dir(), "before"}
from netkit import *
print(*sorted(set(dir()) - before))
"""
    assert in_a_fresh_interpreter(program).split() == sorted(netkit.__all__)


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", netkit.__version__)


@pytest.mark.parametrize("name", [name for name in netkit.__all__ if name != "__version__"])
def test_each_public_name_and_what_it_offers_is_documented(name: str) -> None:
    thing = getattr(netkit, name)
    assert thing.__name__ == name
    assert thing.__doc__
    assert thing.__module__.startswith("netkit.")
    if inspect.isclass(thing):
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and (
                inspect.isfunction(value) or isinstance(value, property)
            ):
                assert inspect.getdoc(getattr(thing, attribute)), attribute


def test_a_name_is_the_same_object_however_it_is_imported() -> None:
    from netkit.server import Server

    assert netkit.Server is Server
    program = """
import netkit
first = netkit.Server
from netkit import Server
print(first is Server is netkit.Server)
"""
    assert in_a_fresh_interpreter(program) == "True\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'netkit' has no attribute 'Sever'"):
        netkit.Sever  # noqa: B018
    assert not hasattr(netkit, "__wrapped__")  # what `inspect` and doctest ask of any object


def test_the_type_checkers_names_are_the_public_ones() -> None:
    tree = ast.parse(ROOMS["__init__"].read_text())
    for_checkers = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name  # which exports it
    }
    exported = {
        (getattr(netkit, name).__module__.removeprefix("netkit."), name)
        for name in netkit.__all__
        if name != "__version__"
    }
    assert for_checkers == exported


def test_importing_netkit_imports_nothing_but_itself() -> None:
    program = """
import __future__, importlib, typing
before = set(sys.modules)
import netkit
print(*sorted(set(sys.modules) - before))
"""
    assert in_a_fresh_interpreter(program).split() == ["netkit"]


def test_a_server_imports_nothing_heavy() -> None:
    heavy = "argparse asyncio ssl http email multiprocessing concurrent unittest difflib subprocess"
    program = f"""
import netkit
netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1").close()
print(*[name for name in {heavy.split()} if name in sys.modules])
"""
    assert in_a_fresh_interpreter(program).split() == []


def test_the_command_line_of_a_server_does_without_the_modules_of_the_client() -> None:
    program = """
import netkit.cli
print(*{"netkit.connecting", "netkit.conversing", "netkit.terminal"}.intersection(sys.modules))
"""
    assert in_a_fresh_interpreter(program).split() == []


def test_the_names_can_be_imported_where_posix_is_missing() -> None:
    program = """
import select, socket

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "termios", "resource", "pwd", "grp"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
for name in ("poll", "epoll", "kqueue", "devpoll"):
    if hasattr(select, name):
        delattr(select, name)
for name in ("SO_REUSEPORT", "AF_UNIX", "TCP_KEEPIDLE"):
    if hasattr(socket, name):
        delattr(socket, name)
import netkit
for name in netkit.__all__:
    getattr(netkit, name)
assert "fcntl" not in sys.modules
assert not hasattr(select, "poll")
import netkit.cli
print(netkit.Server.__name__)
"""
    assert in_a_fresh_interpreter(program) == "Server\n"


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """The rooms of netkit that are imported when the program runs, wherever in the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.ImportFrom) and (
            node.level == 1 or (node.module or "").split(".")[0] == "netkit"
        ):
            module = (node.module or "").removeprefix("netkit").removeprefix(".")
            for alias in node.names:
                yield module or (alias.name if alias.name in ROOMS else "__init__")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "netkit":
                    yield alias.name.partition(".")[2] or "__init__"
        yield from imported_rooms(node)


def test_every_room_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(ROOMS)


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    tree = ast.parse(ROOMS[room].read_text())
    assert set(imported_rooms(tree)) <= set(ORDER[: ORDER.index(room)])


def test_the_check_of_imports_sees_every_form_of_them() -> None:
    source = """
from . import logs, __version__
from .server import Server
from netkit.cli import main
from netkit import client
import netkit.signals, os
from os import path
if TYPE_CHECKING:
    from .handlers import Handler
def f():
    import netkit
"""
    assert list(imported_rooms(ast.parse(source))) == [
        "logs",
        "__init__",
        "server",
        "cli",
        "client",
        "signals",
        "__init__",
    ]


def test_modules_and_functions_are_of_a_length_to_be_read() -> None:
    for room, path in ROOMS.items():
        text = path.read_text()
        assert text.count("\n") <= LONGEST_MODULE, room
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, (room, node.name)


def test_each_room_begins_with_its_docstring() -> None:
    for room, path in ROOMS.items():
        assert ast.get_docstring(ast.parse(path.read_text())), room


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "netkit" / "py.typed").exists()


def test_importing_every_room_by_itself_works() -> None:
    """Each of them first: no room needs another one to have been imported before it."""
    program = """
for room in ROOMS:
    for name in [name for name in sys.modules if name.split(".")[0] == "netkit"]:
        del sys.modules[name]
    __import__("netkit." + room)
print("all")
""".replace("ROOMS", repr([room for room in ORDER if room not in ("__init__", "__main__")]))
    assert in_a_fresh_interpreter(program) == "all\n"
