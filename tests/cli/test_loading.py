"""``netkit serve``: the handler, the server or the factory of the user, and the options there."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from secure import files
from support import PATIENCE, Hostile

import netkit
from netkit.cli.serve import Serve
from netkit.process.application import to_be_loaded

from .commands import HANDLERS, Run, ask, started


def test_a_handler_that_cannot_be_called_is_refused(module: Any, run: Run) -> None:
    module("def handler(*, key): pass")
    status, _, lines = run("serve", "app:handler")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("netkit serve: error: handler(key) cannot serve a client: ")
    assert "--handler-args" not in lines[0]  # a flag that does not exist


def test_what_is_no_handler_is_no_fault_of_the_options(module: Any, run: Run) -> None:
    module("number = 5\nNETKIT_OPTIONS = {'handler_args': {'x': 1}}")
    status, _, (line,) = run("serve", "app:number")
    assert status == 2
    assert line.startswith("netkit serve: error: a handler must be a class or a function, not 5")


@pytest.mark.parametrize("name", ["nosuch", "json.nosuch"])
def test_a_missing_module_is_named_in_one_line(name: str, module: Any, run: Run) -> None:
    text = f"no module named {name!r}, neither here ({os.getcwd()}) nor installed"
    assert run("serve", f"{name}:Shout") == (1, b"", [f"netkit: error: {text}"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shuot", "shuot; did you mean shout?"),
        ("frobnicate", "frobnicate"),
        ("Group.innner", "Group.innner; did you mean inner?"),
    ],
)
def test_the_error_of_a_missing_name_suggests_a_similar_one(
    name: str, message: str, module: Any, run: Run
) -> None:
    module("def shout(conn): pass\nclass Group:\n    def inner(conn): pass\n")
    assert run("serve", f"app:{name}") == (1, b"", [f"netkit: error: app has no {message}"])


def test_a_missing_module_is_named_where_python_fails_to_explain_it(
    module: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> list[str]:
        raise ModuleNotFoundError("No module named 'app.parts'")

    monkeypatch.setattr(traceback, "TracebackException", fail)
    path = module("import app.parts\n")
    status, out, lines = run("serve", "app:Shout")
    assert (status, out) == (1, b"")
    assert lines[:2] == [
        "error: app could not be imported",
        f'  File "{path}", line 1, in <module>',
    ]
    assert lines[-2].startswith("ModuleNotFoundError: No module named 'app.parts'")
    assert lines[-1] == "netkit: error: app could not be imported, see above"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def work():\n    1 / 0\n\nwork()\n", "ZeroDivisionError: division by zero"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("import app.parts\n", "ModuleNotFoundError: No module named 'app.parts'; .*"),
        ("from json import nothing\n", "ImportError: cannot import name 'nothing' .*"),
        ("def (:\n", "SyntaxError: .*"),
    ],
)
def test_a_module_that_fails_shows_its_own_traceback_without_frames_of_netkit(
    source: str, error: str, module: Any, run: Run
) -> None:
    path = module(source)
    status, out, lines = run("serve", "app:Shout")
    assert (status, out) == (1, b"")
    frames = [line for line in lines if line.startswith("  File ")]
    assert frames[0].startswith(f'  File "{path}", line ')
    assert not any("netkit" in frame or "importlib" in frame for frame in frames)
    assert re.fullmatch(error, lines[-2])
    assert lines[-1] == "netkit: error: app could not be imported, see above"


def test_the_failure_of_a_module_is_json_where_that_is_asked_for(module: Any, run: Run) -> None:
    module("1 / 0")
    status, _, lines = run("serve", "app:Shout", "--log-format", "json")
    first, last = map(json.loads, lines)
    assert (status, first["error_type"]) == (1, "ZeroDivisionError")
    assert first["traceback"].startswith("Traceback")
    assert last["message"] == "app could not be imported, see above"


def test_a_module_may_end_the_program(module: Any, run: Run) -> None:
    module("raise SystemExit('not today')")
    assert run("serve", "app:Shout").status == "not today"


@pytest.mark.parametrize("name", ["function", "Class", "Old", "Group.inner"])
def test_serve_runs_a_handler_of_the_current_directory(name: str, module: Any, run: Run) -> None:
    module(HANDLERS)
    replies: list[bytes] = []
    result = run("serve", f"app:{name}", during=lambda port: replies.append(ask(port, b"hello")))
    assert (result.status, replies) == (0, [b"HELLO"])


INSTALLED = """
import multiprocessing, sys
from netkit.__main__ import run
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(run())
"""
needs_safe_path = pytest.mark.skipif(sys.version_info < (3, 11), reason="no -P before Python 3.11")


def installed(folder: Path) -> tuple[Path, Path]:
    """The path of a command that is installed in `folder`, and a current folder elsewhere."""
    (folder / "bin").mkdir()
    (folder / "bin" / "netkit").write_text(INSTALLED)
    (folder / "elsewhere").mkdir()
    return folder / "bin" / "netkit", folder / "elsewhere"


def test_an_installed_command_finds_the_module_in_the_current_directory(tmp_path: Path) -> None:
    command, folder = installed(tmp_path)
    (folder / "app.py").write_text(HANDLERS)
    with started(command, "serve", "app:function", cwd=folder) as (process, port):
        assert ask(port, b"hello") == b"HELLO"
        process.terminate()
        assert process.wait(PATIENCE) == 0


@needs_safe_path
@pytest.mark.parametrize("safe_path", [None, "yes"])
def test_spawned_workers_import_the_handler_alone_from_the_current_directory(
    safe_path: str | None, tmp_path: Path
) -> None:
    """And the programs that a handler starts have the environment that netkit was started with."""
    command, folder = installed(tmp_path)
    hostile = Hostile(folder)
    (folder / "app.py").write_text(
        "import os\ndef show(conn): conn.end(os.environ.get('PYTHONSAFEPATH', 'unset'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    if safe_path is not None:
        environment["PYTHONSAFEPATH"] = safe_path
    words = ["serve", "app:show", "--workers", "2"]
    with started(command, *words, cwd=folder, env=environment) as (process, port):
        assert ask(port, b"") == (safe_path or "unset").encode()
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert hostile.imported() == []


def test_a_module_with_the_name_of_one_of_pythons_is_explained(module: Any, run: Run) -> None:
    module(HANDLERS, "queue")
    assert run("serve", "queue:function").lines == [
        "netkit: error: queue has no function: it is Python's own module queue; "
        "give queue.py here another name"
    ]


def test_an_installed_module_does_not_hide_one_of_the_current_directory(
    module: Any, run: Run, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "app.py").write_text("raise AssertionError('the installed one')")
    sys.path.append(str(installed))
    module(HANDLERS)
    assert run("serve", "app:function", during=lambda port: ask(port, b"")).status == 0


def test_a_current_directory_that_is_gone_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    text = "cannot look for the handler in the current folder: no such file or directory"
    assert run("serve", "app:Shout") == (1, b"", [f"netkit: error: {text}"])


# Servers and factories

APPLICATION = """
import netkit
from functools import partial

def shout(conn, ending="!"):
    conn.end(conn.read().upper() + ending.encode())

class Shout(netkit.Handler):
    ending = "!"
    def handle(self):
        shout(self.conn, self.ending)

class Server(netkit.Server):
    def __init__(self):
        super().__init__(None, Shout, handler_args={"ending": "?"})

server = netkit.create_server(Shout, max_line=7)
bare = netkit.create_server()
make = lambda: Shout
make_server = Server
nothing = lambda: None
async def coroutine(): pass

def broken():
    return 1 / 0

def listening():
    return server.listen(0, "127.0.0.1")
"""


@pytest.mark.parametrize(
    ("name", "words", "answer"),
    [
        ("server", [], b"HI!"),
        ("make()", [], b"HI!"),
        ("make_server()", [], b"HI?"),
        ("shout", ["--set", "ending=..."], b"HI..."),
        ("make()", ["--set", "ending=x", "--set", "ending=y"], b"HIy"),
        ("make_server()", ["--set", "ending="], b"HI"),
    ],
)
def test_serve_takes_a_server_and_a_factory_of_either_with_settings(
    name: str, words: list[str], answer: bytes, module: Any, run: Run
) -> None:
    module(APPLICATION)
    replies: list[bytes] = []
    result = run(
        *("serve", f"app:{name}", *words), during=lambda port: replies.append(ask(port, b"hi"))
    )
    assert (result.status, replies) == (0, [answer])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing()", "app:nothing() has returned None, neither a handler nor a netkit.Server"),
        ("coroutine()", "app:coroutine() must call a plain function: it is a coroutine function"),
        ("bare", "app:bare has no handler: give one to create_server()"),
    ],
)
def test_what_a_module_has_that_cannot_serve_is_one_line(
    name: str, error: str, module: Any, run: Run
) -> None:
    module(APPLICATION)
    assert run("serve", f"app:{name}") == (1, b"", [f"netkit: error: {error}"])


def test_a_factory_that_raises_shows_its_own_traceback(module: Any, run: Run) -> None:
    path = module(APPLICATION)
    status, _, lines = run("serve", "app:broken()")
    assert (status, lines[0], lines[-1]) == (
        *(1, "error: app:broken() failed"),
        "netkit: error: app:broken() failed, see above",
    )
    assert [line for line in lines if line.startswith("  File ")] == [
        f'  File "{path}", line 25, in broken'
    ]


def test_a_server_that_listens_already_is_refused(module: Any, run: Run) -> None:
    module(APPLICATION)
    status, _, lines = run("serve", "app:listening()")
    sys.modules["app"].server.close()
    assert status == 1
    assert re.fullmatch(
        "netkit: error: app:listening[(][)] listens already, on 127.0.0.1:.*: "
        "leave out its listen[(][)], and give the address to this command",
        lines[-1],
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["app:make"], r".* a handler takes one argument.*; a factory is named app:make\(\)"),
        (["app:shout()"], "shout is no factory, since it needs arguments: write app:shout"),
        (["app:Server"], "Server cannot serve a client: it is a server: .*"),
        (["app:Shout", "--set", "endign=x"], "--set endign: .*; did you mean ending[?]"),
        (["app:Shout", "--when-full", "refuse"], "--when-full has no effect .*"),
        (["app:Shout", "0?tls=on"], "[?]tls=on needs --tls-cert .*"),
    ],
)
def test_wrong_use_of_an_application_is_one_line(
    words: list[str], error: str, module: Any, run: Run
) -> None:
    module(APPLICATION)
    status, _, (line,) = run("serve", *words)
    assert status == 2
    assert re.fullmatch(f"netkit serve: error: {error} [(]see netkit serve --help[)]", line)


def test_a_function_written_in_c_may_be_a_factory(module: Any, run: Run) -> None:
    module("make = dict")  # which has no signature
    (line,) = run("serve", "app:make()").lines
    assert line.startswith("netkit: error: app:make() has returned {}, neither")


# The options of the module


def options_of(command: Serve, *words: str) -> dict[str, Any]:
    """The options of the server that `netkit serve` makes."""
    arguments, rest = command.parser().read(words)
    given = command.understand(arguments, rest)
    server, _ = command.complete(netkit.create_server(to_be_loaded, **given), arguments)
    return server._options.as_dict()


def test_flags_come_before_variables_and_these_before_the_module_and_its_server(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(
        APPLICATION + "NETKIT_OPTIONS = {'max_line': 8, 'lifetime': 8, 'idle_timeout': 8, "
        "'handler_args': {'ending': '8'}}"
    )
    monkeypatch.setenv("NETKIT_LIFETIME", "9")
    monkeypatch.setenv("NETKIT_IDLE_TIMEOUT", "9")
    for name in ("app:server", "app:make()"):
        options = options_of(Serve(), name, "--idle-timeout", "10", "--profile", "public")
        names = ("max_line", "lifetime", "idle_timeout", "min_rate")
        assert [options[name] for name in names] == [8, 9, 10, 500]
        assert options["handler_args"] == {"ending": "8"}
    options = options_of(Serve(), "app:server", "--max-line", "11", "--set", "ending=x")
    assert (options["max_line"], options["handler_args"]) == (11, {"ending": "x"})


def test_a_flag_may_belong_to_an_option_of_the_module(module: Any) -> None:
    module(HANDLERS + "NETKIT_OPTIONS = {'max_connections': 8}")
    options = options_of(Serve(), "app:function", "--when-full", "refuse")
    assert (options["max_connections"], options["when_full"]) == (8, "refuse")


def test_a_certificate_on_the_command_line_replaces_all_of_the_modules(module: Any) -> None:
    module(HANDLERS + "NETKIT_OPTIONS = {'tls_cert': 'no', 'tls_key': 'no'}")
    cert = str(files().server)
    options = options_of(Serve(), "app:function", "--tls-cert", cert)
    assert (options["tls_cert"], options["tls_key"]) == (cert, None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("[]", "app.NETKIT_OPTIONS must be a dictionary, not []"),
        (
            "{'lifetme': 1}",
            "app.NETKIT_OPTIONS: unknown option 'lifetme'; did you mean lifetime?",
        ),
        ("{'max_line': 'x'}", "app.NETKIT_OPTIONS: max_line must be a number of bytes, not 'x'"),
        ("{'deny': '@no'}", "app.NETKIT_OPTIONS: deny: No such file or directory: 'no'"),
        (
            "{'workers': 2}",
            "app.NETKIT_OPTIONS: workers is no option of a server; "
            "it is set by --workers or NETKIT_WORKERS",
        ),
        (
            "{'on_start': 3}",
            "app.NETKIT_OPTIONS: on_start must be a function that takes the server, not 3",
        ),
        (
            "{'handler_args': {'x': 1}}",
            "app.NETKIT_OPTIONS: handler_args: handler function cannot be called: "
            "got an unexpected keyword argument 'x'",
        ),
        ("{'tls_key': 'x'}", "app: tls_key needs tls_cert"),
        ("{'tls_cert': 'no'}", "the certificate file 'no': No such file or directory"),
    ],
)
def test_invalid_options_of_a_module_are_one_line_that_names_module_and_option(
    options: str, error: str, module: Any, run: Run
) -> None:
    module(f"{HANDLERS}\nNETKIT_OPTIONS = {options}")
    assert run("serve", "app:function") == (1, b"", [f"netkit: error: {error}"])


def test_an_unknown_option_like_no_other_is_answered_by_the_list(module: Any, run: Run) -> None:
    module(f"{HANDLERS}\nNETKIT_OPTIONS = {{1: 2}}")
    (line,) = run("serve", "app:function").lines
    assert line.startswith("netkit: error: app.NETKIT_OPTIONS: unknown option 1; the options are")


def test_the_hooks_of_a_module_are_called_around_the_clients(module: Any, run: Run) -> None:
    module(
        "steps = []\n"
        "def handler(conn): steps.append('client')\n"
        "NETKIT_OPTIONS = {'on_start': lambda server: steps.append('start'), "
        "'on_stop': lambda server: steps.append('stop')}"
    )
    assert run("serve", "app:handler", during=lambda port: ask(port, b"")).status == 0
    assert sys.modules["app"].steps == ["start", "client", "stop"]


def test_a_hook_of_a_module_that_raises_is_logged_and_the_end(module: Any, run: Run) -> None:
    module(HANDLERS + "NETKIT_OPTIONS = {'on_start': lambda server: 1 / 0}")
    status, _, lines = run("serve", "app:function")
    assert status == 1
    assert lines[1] == "error: on_start failed: ZeroDivisionError: division by zero"
    assert lines[-1] == "netkit: error: on_start failed: ZeroDivisionError: division by zero"
