"""A program that serves in one process, as an operator's endpoint sees it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..core.addresses import format_unix
from ..core.kinds import check_seconds
from ..server.server import Server
from .program import NONE, SECONDS, Answer, Answering, Attachment, ProgramState, answered


class LocalProgram:
    """The program of `servers`, all of which are in this process. Thread-safe."""

    def __init__(
        self,
        servers: Sequence[Server],
        attachment: Attachment,
        reload: Callable[[], object],
        reloads: Mapping[str, int],
    ) -> None:
        """`reload` begins a reload, and `reloads` counts them."""
        self._servers = servers
        self._attachment = attachment
        self._reload = reload
        self._reloads = reloads
        self._started_at = time.time()
        self._lock = threading.Lock()  # guards the change of the answering function
        self._answering: Answering | None = None

    def attach(self) -> Answering:
        """Attach the attachment to the servers, unless it is attached. Raises what it raises."""
        with self._lock:
            if self._answering is None:
                try:
                    self._answering = self._attachment.attach(self._servers)
                except BaseException:
                    self._attachment.detach()  # ends what it has begun before it failed
                    raise
            return self._answering

    def detach(self) -> None:
        """Detach the attachment, if it is attached. Idempotent.

        A later question has an answer with an error, and does not attach it again.
        """
        with self._lock:
            if self._answering not in (None, _has_ended):
                self._attachment.detach()
            self._answering = _has_ended

    def state(self) -> ProgramState:
        return ProgramState(
            phase=phase_of(self._servers),
            pid=os.getpid(),
            started_at=self._started_at,
            workers=0,
            restarts=0,
            reloads=dict(self._reloads),
            retired={},
            addresses=[address for server in self._servers for address in addresses_of(server)],
        )

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] = NONE,
        pids: Collection[int] | None = None,
        seconds: float = SECONDS,
    ) -> list[Answer]:
        """As `Program.ask`: the calling thread answers."""
        pid = os.getpid()
        if pids is not None and pid not in pids:
            return []
        return [answered(self.attach(), pid, command, arguments)]

    def order(self, command: str, /, **arguments: Any) -> None:
        if command == "stop":
            order = stop_order(**arguments)
            for server in self._servers:
                server.request_stop(*order)
        elif command == "reload":
            self._reload()
        elif command == "release":
            for server in self._servers:
                server._listeners.leave_files()
            self._attachment.release()
        elif command == "resize":
            raise ValueError(
                "workers: the program serves in one process; start it with --workers N"
            )
        elif command != "standing":  # no process starts later
            raise ValueError(f"{command}: the program serves in one process")


def _has_ended(command: str, arguments: dict[str, Any]) -> Any:
    raise ValueError("the program has ended")


def phase_of(servers: Sequence[Server]) -> str:
    """Return the phase of a program that is `servers`: see `ProgramState.phase`."""
    if any(server._drain.is_announced() for server in servers):
        return "stopping"
    if any(server._admission.suspended for server in servers):
        return "suspended"
    return "ready" if all(server._accept_loop.under_way for server in servers) else "starting"


def addresses_of(server: Server) -> list[str]:
    """Return the addresses on which `server` listens, for people."""
    return [format_unix(it) if isinstance(it, str) else str(it) for it in server.addresses]


def stop_order(
    timeout: float | None = None, patience: float = 0.0, delay: float = 0.0
) -> tuple[float | None, float, float]:
    """Return the arguments of `Server.stop`. ValueError if they are invalid."""
    given = {"timeout": timeout, "patience": patience, "delay": delay}
    for name, seconds in given.items():
        if seconds is not None or name != "timeout":
            try:
                check_seconds(name, seconds)
            except TypeError as error:
                raise ValueError(str(error)) from None
    return timeout, patience, delay
