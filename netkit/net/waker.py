"""Ends a wait for descriptors from another thread, or from a signal handler.

This is netkit's only way to do that: every wait that can be ended includes a `Waker`.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import threading
from collections.abc import Iterator

from . import sockopts
from .forks import do_not_undo, undo_in_children


class _Input:
    """The end that `Waker.wake` writes to, closed with its last reference.

    A close during a write could let the write reach another socket with the same number. A lock
    against that could not be taken by a signal handler.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def __del__(self) -> None:
        self.sock.close()


class Waker:
    """A descriptor that a wait includes, and that `wake` makes readable.

    `wake` and `close` may be called from any thread and from a signal handler, and in a forked
    process; `clear` belongs to the thread that waits. Holds two descriptors until `close`.
    """

    def __init__(self) -> None:
        """OSError if the system has no descriptor left."""
        self._output, sock = sockopts.socket_pair()
        sock.setblocking(False)
        self._input: _Input | None = _Input(sock)

    def fileno(self) -> int:
        """The descriptor to wait for: readable after `wake`, until `clear`. -1 once closed."""
        return self._output.fileno()

    def input_fileno(self) -> int:
        """The non-blocking descriptor for `signal.set_wakeup_fd`. -1 once closed."""
        end = self._input
        return -1 if end is None else end.sock.fileno()

    def wake(self) -> None:
        """End the present wait, or the next one. Never waits. Does nothing after `close`."""
        end = self._input
        if end is not None:
            with contextlib.suppress(OSError):  # full: the wait has been ended already
                end.sock.send(b"\0")

    def wait(self, seconds: float | None) -> bool:
        """Wait for a call of `wake` since the last `clear`. False if `seconds` have passed."""
        return sockopts.wait_until_ready(self._output, False, seconds)

    def clear(self) -> None:
        """Forget the calls of `wake` so far. Waits for one if there was none."""
        self._output.recv(4096)

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        self._input = None
        self._output.close()


@contextlib.contextmanager
def woken_by_signals(waker: Waker) -> Iterator[None]:
    """In the main thread, have each signal call `waker.wake` while the ``with`` block runs.

    Otherwise the handler of a signal that comes just before a wait would run after it. Does nothing
    in other threads, in a subinterpreter, and where the program has set its own wake-up descriptor
    (`signal.set_wakeup_fd`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = waker.input_fileno()
    undo = functools.partial(_unset_wakeup_fd, ours)
    try:
        undo_in_children(undo)
        with contextlib.suppress(ValueError):  # in a subinterpreter
            previous = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
            if previous != -1:
                signal.set_wakeup_fd(previous)
        yield
    finally:  # wherever a signal handler has raised an exception
        do_not_undo(undo)
        undo()


def _unset_wakeup_fd(ours: int) -> None:
    with contextlib.suppress(ValueError):  # as above
        present = signal.set_wakeup_fd(-1)
        if present not in (ours, -1):  # the program has set its own
            signal.set_wakeup_fd(present)
