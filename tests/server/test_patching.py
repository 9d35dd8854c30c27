"""Libraries that put their own in the place of Python's threads and waits."""

from __future__ import annotations

import _thread
import importlib.util
import select
import subprocess
import sys
from typing import Any

import pytest
from support import PATIENCE, ROOT, exchange, serving

import netkit

PATCHED = """
import sys
{patch}
import socket, threading, netkit
server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
calls = [server.serve_forever, server.start, server.handle_request, lambda: next(iter(server)),
         lambda: netkit.run(server), lambda: netkit.Workers(server, 2).run()]
for call in calls:
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    try:
        call()
    except RuntimeError as error:
        print(error)
    finally:
        server.close()
"""

UNPATCHED = """
{patch}
import socket, netkit
with netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server:
    with socket.create_connection(server.server_address[:2]) as sock:
        sock.sendall(b"hello")
        print(sock.recv(5))
"""


def output_of(program: str, patch: str) -> list[str]:
    library = patch.split()[1].rstrip(";").partition(".")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-W", "ignore", "-c", program.format(patch=patch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("library", "patch"),
    [
        ("gevent", "import gevent.monkey; gevent.monkey.patch_all()"),
        ("gevent", "import gevent.monkey; gevent.monkey.patch_all(thread=False)"),
        ("gevent", "import gevent.monkey; gevent.monkey.patch_all(thread=False, select=False)"),
        ("eventlet", "import eventlet; eventlet.monkey_patch()"),
    ],
)
def test_a_program_whose_threads_are_replaced_gets_an_error_as_it_begins_to_serve(
    library: str, patch: str
) -> None:
    lines = output_of(PATCHED, patch)
    assert len(lines) == 6
    assert all(f"and {library} has replaced them" in line for line in lines)


def test_a_program_whose_threads_are_left_is_served() -> None:
    patch = "import gevent.monkey; gevent.monkey.patch_time(); gevent.monkey.patch_subprocess()"
    assert output_of(UNPATCHED, patch) == ["b'hello'"]


@pytest.mark.parametrize(("module", "name"), [(_thread, "start_new_thread"), (select, "select")])
def test_the_error_names_the_library_that_has_replaced_them(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacement() -> None:
        pass

    replacement.__module__ = "greens.thread"
    server = netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacement)
        with pytest.raises(RuntimeError, match="and greens has replaced them: patch none"):
            server.start()
    server.close()
    with serving(netkit.EchoHandler) as server:
        assert exchange(server, b"hello") == b"hello"
