"""The endpoints of a program in the process that serves them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence

from ..process.program import Program
from ..server.server import Server
from .control import Control
from .status import Status

_PAUSE = 0.02  # seconds between two looks at the state of a program that starts


class ServedEndpoints:
    """The servers of the status endpoint and of the control socket, until `close`."""

    def __init__(
        self, status: Status | None, control: Control | None, program: Program, waits: bool
    ) -> None:
        """Start them in the background. RuntimeError if no thread can be started.

        If it `waits`, they accept nobody before `program` is ready.
        """
        self._servers: list[Server] = []
        self._closed = threading.Event()
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            if status is not None:
                self._servers.append(status.serve(program, waits))
            if control is not None:
                self._servers.append(control.serve(program, self, waits))
            if waits:
                thread = threading.Thread(
                    None, self._resume, "netkit-endpoints", (program,), daemon=True
                )
                thread.start()
            stack.pop_all()

    def _resume(self, program: Program) -> None:
        # By polling: the front process sees no event of the workers. A start is short.
        while program.state().phase == "starting":
            if self._closed.wait(_PAUSE):
                return
        for server in self._servers:
            server.resume()

    def listeners(self) -> Sequence[socket.socket]:
        """Return the listeners of all endpoints."""
        return [listener for server in self._servers for listener in server._listeners.sockets]

    def leave(self) -> None:
        """Accept nobody any more. Does not wait."""
        for server in self._servers:
            server.request_stop()

    def close(self) -> None:
        """End the endpoints. Idempotent."""
        self._closed.set()
        for server in reversed(self._servers):
            server.close()
