"""Ends a wait for descriptors from another thread, or from a signal handler."""

from __future__ import annotations

import contextlib
import os
import threading

from . import sockopts


class Waker:
    """A descriptor that a wait includes, and that `wake` makes readable. Holds two until `close`.

    `wake` and `close` may be called from any thread and from a signal handler, and in a process
    that was forked meanwhile; the rest belongs to the thread that waits.
    """

    def __init__(self) -> None:
        self._output, self._input = sockopts.socket_pair()
        self._input.setblocking(False)
        # Held while the input is used or closed: without it, a late `wake` could write into a
        # descriptor that another socket has by then. Re-entrant, for signal handlers.
        self._using = threading.RLock()
        self._process = os.getpid()

    def fileno(self) -> int:
        """The descriptor to wait for: readable after `wake`, until `clear`."""
        return self._output.fileno()

    def input_fileno(self) -> int:
        """The descriptor to write to instead of `wake`, for `signal.set_wakeup_fd`."""
        return self._input.fileno()

    def wake(self) -> None:
        """End the present wait, or the next one. Never waits; nothing happens after `close`."""
        with self._lock(), contextlib.suppress(OSError):  # full: it has been woken already
            self._input.send(b"\0")

    def clear(self) -> None:
        """Forget the calls of `wake` so far. Waits for one if there was none."""
        self._output.recv(4096)

    def close(self) -> None:
        """Give the descriptors back. Idempotent."""
        self._output.close()
        with self._lock():
            self._input.close()

    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        if self._process != os.getpid():  # forked: a thread that is not here may hold it for ever
            self._process, self._using = os.getpid(), threading.RLock()
        return self._using
