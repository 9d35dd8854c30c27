"""Threads that serve one client after another.

Starting a thread costs more than serving a short connection, so a thread that is done with its
client waits a while for the next one, and then ends.

Each job begins with an empty context (`contextvars`), even if a new thread would inherit one
(`sys.flags.thread_inherit_context`): what one client sets there must not reach another.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import select
import socket
import threading
from collections.abc import Callable
from contextvars import Context
from types import BuiltinFunctionType
from typing import Any

from ..core.deadline import Deadline

Job = tuple[Any, ...]  # a function and its arguments

PARK_SECONDS = 10.0  # how long a thread waits for its next client: longer than usual lulls
MAX_PARKED = 64  # waiting threads at most; each costs about 20 KiB
PARKED = "netkit-parked"  # the name of a waiting thread


def check_threads() -> None:
    """RuntimeError if a library has replaced Python's threads, `select` or sockets by its own.

    gevent and eventlet do so by monkey patching. A wait of netkit would then stop all threads, and
    an object for which one thread waits could not be used by another.
    """
    for used, own in (
        (_thread.start_new_thread, isinstance(_thread.start_new_thread, BuiltinFunctionType)),
        (select.select, isinstance(select.select, BuiltinFunctionType)),
        (socket.socket, issubclass(socket.socket, _socket.socket)),
    ):
        if not own:
            library = str(used.__module__).partition(".")[0]
            raise RuntimeError(
                f"netkit needs the threads and sockets of Python, and {library} has replaced them:"
                " patch none of socket, thread and select, or serve in another process"
            )


def join(thread: threading.Thread, timeout: float | None) -> None:
    """Wait for the end of `thread`, at most `timeout` seconds.

    Returns at once for the calling thread, and for one that has not been started.
    """
    if thread is not threading.current_thread():
        with contextlib.suppress(RuntimeError):  # not started
            thread.join(timeout)


class _Parked:
    """A waiting thread, which is given its next job, or None to end.

    It waits for a lock: before 3.13, a `queue.SimpleQueue` may forget its time limit when a signal
    comes.
    """

    __slots__ = ("_called", "job")

    def __init__(self) -> None:
        self._called = threading.Lock()
        self._called.acquire()
        self.job: Job | None = None

    def wait(self, seconds: float) -> bool:
        """Wait for `call`; False if it does not come in time."""
        return self._called.acquire(timeout=seconds)

    def call(self, job: Job | None) -> None:
        self.job = job
        self._called.release()


class ClientThreads:
    """Runs each job in a thread of its own: one that an earlier job has left, or a new one.

    Thread-safe. `daemon`: whether the interpreter may exit while the threads run; a change counts
    for threads that are started later.
    """

    def __init__(self, daemon: bool) -> None:
        self.daemon = daemon
        # Guards the attributes below. Re-entrant, for signal handlers that stop a server in its
        # accepting thread.
        self._lock = threading.RLock()
        self._parked: list[_Parked] = []  # the last one is called first
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def run(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function` in a thread. RuntimeError, and it is not called, if none can be started.

        After any other exception (KeyboardInterrupt) it may be called or not.
        """
        job = function, *arguments
        with self._lock:
            if self._parked:
                self._parked.pop().call(job)
                return
            thread = threading.Thread(target=self._work, args=([job],), daemon=self.daemon)
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:  # else it runs, and a Ctrl+C has ended the wait for its start
                with self._lock:
                    self._threads.discard(thread)
            raise

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()  # the thread itself keeps its arguments until it ends
        try:
            while job:
                Context().run(*job)  # costs each client 0.1 KiB
                job = None  # frees what the client used before the wait
                job = self._next()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> Job | None:
        thread = threading.current_thread()
        if not thread.daemon:  # at its exit, the interpreter would wait for this thread
            return None
        with self._lock:
            if self._closed or len(self._parked) >= MAX_PARKED:
                return None
            parked = _Parked()
            self._parked.append(parked)
        thread.name = PARKED
        if not parked.wait(PARK_SECONDS):
            with self._lock, contextlib.suppress(ValueError):  # `call` was faster
                self._parked.remove(parked)
        return parked.job

    def threads(self) -> list[threading.Thread]:
        """All threads, busy or parked."""
        with self._lock:
            return list(self._threads)

    def close(self) -> None:
        """End the parked threads now, and the busy ones after their job. Idempotent."""
        with self._lock:
            self._closed = True
            while self._parked:
                self._parked.pop().call(None)

    def end_in_child(self) -> None:
        """In a forked child: only the calling thread exists there, and its job is the last."""
        self._lock = threading.RLock()
        self._parked.clear()
        self._threads = {threading.current_thread()}
        self._closed = True

    def join(self, timeout: float | None) -> bool:
        """Wait for the end of all threads but the calling one; False if some are still busy.

        `timeout`: seconds for all of them together.
        """
        until = Deadline(timeout)
        for thread in self.threads():
            join(thread, until.remaining())
        return all(thread is threading.current_thread() for thread in self.threads())
