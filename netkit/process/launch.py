"""Starts the processes of a program with workers: the workers, and the front process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import WorkersFailedError
from ..server.log_config import shows_status_lines
from ..server.reload import pems_in_memory
from ..server.server import Server
from .child import Child, context_of, prepare
from .hooks import Hooks
from .local import addresses_of
from .memory import Memory
from .orders import Attached
from .program import Attachment, ProgramState
from .shared import SharedNumbers, SharedPlaces
from .work import core_of, recipe_of, work
from .worker import Worker

if TYPE_CHECKING:
    from .application import Load


class Launch:
    """Starts processes, and holds what they share. For one thread, except `keep_files`."""

    def __init__(
        self, server: Server, load: Load | None, hooks: Hooks, attachment: Attachment | None
    ) -> None:
        self._server, self._load, self._hooks = server, load, hooks
        self._attachment = attachment
        self._places: SharedPlaces | None = None  # if there is a limit
        self._numbers: SharedNumbers | None = None
        self._memory: Memory | None = None
        self._pems: dict[str, Any] = {}  # the last valid files of TLS, for spawned workers
        self._started_at = 0.0
        self._addresses: list[str] = []

    def open(self) -> None:
        """Make what the processes share. WorkersFailedError if the system has no room for it."""
        self._started_at, self._addresses = time.time(), addresses_of(self._server)
        self.keep_files()
        limit = self._server._options.max_connections
        if limit is not None or self._load is not None:  # which may set one
            try:
                self._places = SharedPlaces(limit)
            except OSError as error:
                raise WorkersFailedError(error.strerror) from None
        with contextlib.suppress(OSError):  # then each worker numbers its own connections
            self._numbers = SharedNumbers()

    def close(self) -> None:
        """Close what `open` has made. Idempotent."""
        if self._places is not None:
            self._places.close()
            self._places = None
        for each in (self._numbers, self._memory):
            if each is not None:
                each.close()

    def keep_files(self) -> None:
        """Read the files of TLS for spawned workers, which may start when the files are invalid."""
        with contextlib.suppress(OSError, ValueError):  # the former ones stay
            self._pems = pems_in_memory(self._server._options)

    def reclaim(self, worker: Worker) -> None:
        """Give back the places of a worker that has ended."""
        if self._places is not None:
            self._places.reclaim(worker.index)

    def start(self, worker: Worker, count: int, standing: Sequence[tuple[str, str]]) -> None:
        """Start one of `count` workers. It is asked the `standing` questions before it serves.

        Raises what `Child.start` raises.
        """
        # A copy of this process would have the old code.
        with _context(fresh=worker.generation > 0 and self._load is None) as context:
            source: Any = self._server
            if context.get_start_method() != "fork":
                source = recipe_of(self._server, self._load, self._pems)
                prepare(context)
            if self._places is not None:
                self._places.index = worker.index  # in the new process
            core = core_of(worker.index, count)
            shared = self._places, self._numbers
            forget = self._forget_memory if context.get_start_method() == "fork" else None
            attached = Attached(self._attachment, tuple(standing), forget)
            worker.start(context, work, source, self._load, self._hooks, *shared, core, attached)

    def start_front(self, child: Child) -> None:
        """Start the front process. Raises what `Child.start` raises, and OSError."""
        from .front import answer_operators  # here because most programs have none

        if self._memory is None:
            self._memory = Memory()
        with _context(fresh=False) as context:
            forget: Callable[[], object] | None = self._forget
            if context.get_start_method() != "fork":
                forget = None
                prepare(context)
            shared = self._attachment, self._memory, self._facts(), forget
            child.start(context, answer_operators, *shared, shows_status_lines())

    def _facts(self) -> ProgramState:
        return ProgramState("", os.getpid(), self._started_at, 0, 0, {}, {}, self._addresses)

    def _forget_memory(self) -> None:
        """Close what a forked worker does not need."""
        if self._memory is not None:
            self._memory.close()

    def _forget(self) -> None:
        """Close what a forked front process does not need."""
        self._server._listeners.end_in_child()
        if self._places is not None:
            self._places.close()
        if self._numbers is not None:
            self._numbers.close()


@contextlib.contextmanager
def _context(fresh: bool) -> Iterator[Any]:
    """Yield the context of `context_of`. The program's choice of a start method stays as it is."""
    import multiprocessing

    chosen = multiprocessing.get_start_method(allow_none=True)
    try:
        yield context_of(fresh)
    finally:
        if chosen is None:  # `multiprocessing` takes a spawn for a choice
            multiprocessing.set_start_method(None, force=True)
