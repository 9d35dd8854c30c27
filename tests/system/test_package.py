"""The package as a whole: its public names, the cost of its import, its structure and sizes."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE, ROOT

import netkit

SOURCE = ROOT / "netkit"
# Each module by its name in the package: "server.admission".
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# What the modules of a package may import from, besides their own package.
PACKAGES = {
    "core": (),
    "tls": ("core",),
    "net": ("core", "tls"),
    "server": ("core", "tls", "net"),
    "client": ("core", "tls", "net"),
    "process": ("core", "tls", "net", "server"),
    "ops": ("core", "tls", "net", "server", "process"),
    "cli": ("core", "tls", "net", "server", "client", "process", "ops"),
}

LONGEST_MODULE = 350  # lines
LONGEST_FUNCTION = 35  # lines without the docstring
MEDIAN_FUNCTION = 6  # lines without the docstring
FLOORS = 9


def in_a_fresh_interpreter(program: str) -> str:
    """The output of `program` in an interpreter without other packages. A warning is an error."""
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


PUBLIC_NAMES = """
__version__ AcceptFailed AcceptPaused AcceptResumed AttemptFailed AttemptStarted BlockList
BoundSocket Cancel CancelledError ClientFailed ClientOptions ClientRefused ConnectError Connection
ConnectionClosed ConnectionClosedError ConnectionOpened Delimiter EchoHandler Event FixedSize
Framing FramingError FrontEnded GreeterHandler Group Handler HandlerFailed HandlerResumed
HandlerStuck HandshakeError HandshakeInAccept HookFailed IncompleteReadError IncrementalDecoder
InvalidTextError KeyReadable KilledError LengthPrefix LineTooLongError ListLoaded ListenerLost
Listening LocalError LoggerHandler MessageTooLongError MissingExtraError NetkitError Netstrings
NothingToReload ObserverFailed OperatorCommand Outbox OutboxFullError PeerCredentials PeerError
ProxyHeader ProxyHeaderError ProxyHeaderParser ProxyTls Ready Refused Refusing Relayed ReloadBegun
ReloadEnded ReloadFailed Reloaded Report Resolved RunReport Server ServerOptions ServerStateError
ServingOn SettingsKept SettingsReloaded SignalsUnavailable SocketAddress StatusReported StopDelayed
StopReport Stopped Stopping TlsConfigError TlsError TlsStream TruncatedError UnknownEncodingError
Unlimited VarintPrefix WorkerEnded WorkerFailed Workers WorkersFailedError WorkersReady
WorkersStopping WriteAfterEndError configure_logging connect create_server gate_active is_ip is_ipv4
is_ipv6 metrics_text receive_connection relay run send_connection serve subscribe to_bytes to_str
"""


def test_the_public_names_are_these() -> None:
    assert netkit.__all__ == PUBLIC_NAMES.split()


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
    """The modules that say so have no syntax that is newer than Python 3.6."""
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
    from netkit.server.server import Server

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
    tree = tree_of("__init__")
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


def test_a_server_of_one_process_starts_without_modules_that_it_does_not_need() -> None:
    """Each of them would make its start longer."""
    program = """
from netkit.cli.echo import Echo
command = Echo()
command.understand(*command.parser().read(["127.0.0.1:8080"]))
from netkit.net.bind import candidates
candidates("127.0.0.1", 0)
ours = ("client", "cli.connect", "cli.serve", "process.supervisor", "core.blocklist", "tls.context")
unneeded = {f"netkit.{name}" for name in ours}
unneeded |= {"encodings.idna", "ipaddress", "multiprocessing", "shutil", "ssl"}
print(*unneeded.intersection(sys.modules))
"""
    assert in_a_fresh_interpreter(program).split() == []


def test_a_server_starts_without_compiling_any_text() -> None:
    """The first call of `compile` takes 2 ms.

    `typing.NamedTuple` compiles annotations that are text, and a TypeVar compiles such a bound.
    """
    program = """
import builtins
from netkit.cli.main import main
builtins.compile = print
import netkit.cli.echo
netkit.cli.echo.Echo().parser()
"""
    assert in_a_fresh_interpreter(program) == ""


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
import netkit.cli.main
print(netkit.Server.__name__)
"""
    assert in_a_fresh_interpreter(program) == "Server\n"


def imported(tree: ast.AST, package: str, for_types: bool = False) -> Iterator[str]:
    """The modules of netkit that a module in `package` imports at run time, in functions too.

    With `for_types`, also those that it imports for its annotations.
    """
    for node in ast.iter_child_nodes(tree):
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if is_for_types and not for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, package)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name[7:] or "__init__" for name in names if (name + ".")[:7] == "netkit.")
        yield from imported(node, package, for_types)


def _imported_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    module = node.module or ""
    if node.level:
        above = f"netkit.{package}".rstrip(".").split(".")
        module = ".".join([*above[: len(above) - node.level + 1], *filter(None, [module])])
    if (module + ".")[:7] != "netkit.":
        return
    name = module[7:]
    for alias in node.names:
        inner = f"{name}.{alias.name}".lstrip(".")
        candidates = (inner, f"{inner}.__init__", name)
        yield next(filter(MODULES.__contains__, candidates), f"{name}.__init__".lstrip("."))


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@functools.cache
def imports_of(module: str, for_types: bool = False) -> set[str]:
    package = module.rpartition(".")[0]
    return set(imported(tree_of(module), package, for_types)) - {module}


def package_of(module: str) -> str:
    """The topmost one: also of a module in a package within it."""
    return module.rpartition(".")[0].partition(".")[0]


def test_every_package_has_a_list_of_packages_that_it_may_import() -> None:
    assert {package_of(module) for module in MODULES} == {"", *PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_those_below_it(package: str) -> None:
    for module in MODULES:
        if package_of(module) == package and module != f"{package}.__init__":
            from_outside = {package_of(each) for each in imports_of(module)} - {package}
            assert from_outside - {""} <= set(PACKAGES[package]), module


def test_no_module_of_the_core_imports_sockets_threads_or_tls() -> None:
    for module in MODULES:
        if package_of(module) == "core":
            for node in ast.walk(tree_of(module)):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = {getattr(node, "module", ""), *(alias.name for alias in node.names)}
                    assert not names & {"socket", "threading", "select", "ssl"}, module


def check_no_circle(left: dict[str, set[str]]) -> None:
    while left:
        free = [module for module, needs in left.items() if not needs & set(left)]
        assert free, f"a circle within {sorted(left)}"
        for module in free:
            del left[module]


def test_no_modules_import_each_other() -> None:
    check_no_circle({module: imports_of(module) & set(MODULES) for module in MODULES})


def test_no_part_of_a_server_knows_the_server_or_a_part_that_knows_it() -> None:
    """Not even in an annotation, so that each part can be made, and tested, without a server."""
    parts = {module for module in MODULES if package_of(module) == "server"}
    knows = {module: imports_of(module, for_types=True) & parts for module in parts}
    assert [module for module in parts if "server.server" in knows[module]] == []
    assert [module for module in parts if "server.hooks" in knows[module]] == ["server.server"]
    check_no_circle(knows)


def test_the_check_of_imports_finds_every_form_of_import() -> None:
    source = """
from . import log, nothing
from .server import Server
from ..core import events
from .. import __version__
from netkit.cli.main import main
from netkit.core import errors
import netkit.process.signals, os
from os import path
if TYPE_CHECKING:
    from .handlers import Handler
def f():
    import netkit
"""
    assert list(imported(ast.parse(source), "server")) == [
        "server.log",
        "server.__init__",
        "server.server",
        "core.events.__init__",
        "__init__",
        "cli.main",
        "core.errors",
        "process.signals",
        "__init__",
    ]


def test_few_imports_lead_from_a_module_down_to_the_lowest_package() -> None:
    """An import within a package counts for nothing."""

    @functools.cache
    def floor(module: str) -> int:
        below = imports_of(module) & set(MODULES)
        return max(
            (floor(each) + (package_of(each) != package_of(module)) for each in below), default=1
        )

    assert max(floor(module) for module in MODULES) <= FLOORS


def functions_of(module: str) -> Iterator[tuple[str, int]]:
    """The name of each function of a module, and its length in lines without the docstring."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            last = node.end_lineno or 0
            first = node.body[0]
            described = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if described else 0
            yield node.name, last - node.lineno + 1 - docstring


def test_no_module_is_longer_than_can_be_read_at_once() -> None:
    for module, path in MODULES.items():
        assert path.read_text().count("\n") <= LONGEST_MODULE, module


def test_functions_are_short() -> None:
    lengths = []
    for module in MODULES:
        for name, length in functions_of(module):
            lengths.append(length)
            assert length <= LONGEST_FUNCTION, (module, name)
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_each_module_begins_with_its_docstring() -> None:
    for module in MODULES:
        assert ast.get_docstring(tree_of(module)), module


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "netkit" / "py.typed").exists()


# The modules that import a package of an extra, and are imported only if it is there.
NEED_EXTRA = {"cli.terminal"}


def test_every_module_can_be_imported_and_imports_what_it_needs() -> None:
    """Those that import others come before the others. No modules import each other, see above."""
    without = {name for name in MODULES if "__" in name} | NEED_EXTRA
    program = """
for module in MODULES:
    __import__("netkit." + module)
print("all")
""".replace("MODULES", repr([name for name in reversed(MODULES) if name not in without]))
    assert in_a_fresh_interpreter(program) == "all\n"
