"""The way of one client through a server, counted in calls of netkit's functions."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from support import PATIENCE, wait_until

import netkit
from netkit.core.cores import has_gil

SOURCE = str(Path(netkit.__file__).parent)

MOST_CALLS = 44  # of all functions of netkit
MOST_CALLS_OF_SERVER = 21  # of those in netkit/server
MOST_CHANGES = 38
# Without the GIL, a read and a write call these, too.
WITHOUT_GIL = () if has_gil() else ("fence", "leave", "_next_locked")


class Recorder:
    """Notes each call of a function of netkit's, by thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, str]] = []  # thread, module and function

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        of_netkit = code.co_filename.startswith(SOURCE) and code.co_name not in WITHOUT_GIL
        if event == "call" and of_netkit and code.co_name[0] != "<":  # a comprehension before 3.12
            module = code.co_filename.removeprefix(SOURCE)
            self.calls.append((threading.get_ident(), module, code.co_name))

    def changes_of_module(self) -> int:
        """How often a thread goes on in another module than that of its call before."""
        by_thread: dict[int, list[str]] = {}
        for thread, module, _ in self.calls:
            by_thread.setdefault(thread, []).append(module)
        pairs = itertools.chain.from_iterable(map(itertools.pairwise, by_thread.values()))
        return sum(a != b for a, b in pairs)

    def calls_of_server(self) -> int:
        """The calls of functions in netkit/server."""
        return sum(module.startswith(f"{os.sep}server") for _, module, _ in self.calls)

    def count(self, name: str) -> int:
        """The calls of functions of netkit/server with this name."""
        server = f"{os.sep}server"
        return sum(module.startswith(server) and call == name for _, module, call in self.calls)

    def __str__(self) -> str:
        return "\n".join(f"{module} {name}" for _, module, name in self.calls)


@contextmanager
def profiled() -> Iterator[Recorder]:
    """A recorder of all threads that are started meanwhile."""
    recorder = Recorder()
    threading.setprofile(recorder)
    try:
        yield recorder
    finally:
        threading.setprofile(None)  # type: ignore[arg-type] # as its documentation has it


def echo_once(server: netkit.Server) -> None:
    """One client: connected, served and closed, and its thread parked again."""
    with socket.create_connection(server.server_address[:2], timeout=PATIENCE) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    wait_until(lambda: [t.name for t in server._threads] == ["netkit-parked"])


def test_a_client_of_the_echo_handler_costs_so_many_calls() -> None:
    """From accept to close, in a server that has served clients before.

    Its connection is added to the registry and removed once, and never looked up.
    """
    with (
        profiled() as recorder,
        netkit.create_server(netkit.EchoHandler).listen(0, "127.0.0.1") as server,
    ):
        for _ in range(3):
            echo_once(server)
        wait_until(lambda: recorder.count("wait") > 3)  # the accepting thread waits for the next
        recorder.calls.clear()
        echo_once(server)
        assert len({thread for thread, _, _ in recorder.calls}) == 2  # accepting, and the client's
        assert len(recorder.calls) <= MOST_CALLS, str(recorder)
        assert recorder.calls_of_server() <= MOST_CALLS_OF_SERVER, str(recorder)
        assert [recorder.count(name) for name in ("add", "remove")] == [1, 1], str(recorder)
        assert not recorder.count("connection_of") + recorder.count("_find"), str(recorder)
        assert recorder.changes_of_module() <= MOST_CHANGES, str(recorder)
