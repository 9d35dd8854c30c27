"""The threads of a server's clients. Each of them serves one client after another.

To start a thread costs more than to serve a short connection, so a thread that has served its
client waits for the next one for a while before it ends.

Each job begins with an empty context (`contextvars`), even if new threads inherit one
(`sys.flags.thread_inherit_context`): what the handler of one client sets must not reach another.
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

PARKED = "netkit-parked"  # the name of a waiting thread


def check_threads() -> None:
    """RuntimeError if a library has replaced Python's threads, `select` or sockets by its own.

    gevent and eventlet do so by monkey patching. A wait of netkit would then block all their
    threads, and a lock that one thread waits for could not be released by another.
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


class _Parking:
    """The wait of one thread for its next job; None if the thread is to end.

    It uses a lock: before 3.13, a `queue.SimpleQueue` may forget its time limit when a signal
    comes.
    """

    __slots__ = ("job", "ready")

    def __init__(self) -> None:
        self.job: Job | None = None
        self.ready = threading.Lock()  # released once `job` is set
        self.ready.acquire()


class ClientThreads:
    """Runs each job in a waiting thread, or in a new one if no thread waits. Thread-safe.

    ``is_daemon()`` tells, for each new thread, whether the interpreter may exit while it runs. A
    thread that is no daemon does not wait for another job. ``may_retry(error)`` is called, without
    a lock, with the RuntimeError of a thread that could not be started. It returns whether to try
    again, perhaps after a pause.
    """

    park_seconds = 10.0
    """How long a thread waits for its next job."""
    max_parked = 64
    """How many threads wait at most; each costs about 20 KiB."""

    def __init__(
        self, is_daemon: Callable[[], bool], may_retry: Callable[[RuntimeError], bool]
    ) -> None:
        self._is_daemon, self._may_retry = is_daemon, may_retry
        # Guards the attributes below. Re-entrant, since a signal handler may stop the server in the
        # accepting thread, which may be in `run`.
        self._lock = threading.RLock()
        self._parked: list[_Parking] = []  # the last one gets the next job
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def run(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call `function` in a thread. False, and it is not called, if none can be started.

        If a signal handler raises an exception here, `function` may have been called or not.
        """
        job = function, *arguments
        while True:
            with self._lock:
                if self._parked:
                    parking = self._parked.pop()
                    parking.job = job
                    parking.ready.release()
                    return True
            try:
                self._start(job)
                return True
            except RuntimeError as error:
                if not self._may_retry(error):
                    return False

    def _start(self, job: Job) -> None:
        daemon = self._is_daemon()
        thread = threading.Thread(target=self._work, args=([job],), daemon=daemon)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:  # else it runs, and a Ctrl+C has interrupted `Thread.start`
                with self._lock:
                    self._threads.discard(thread)
            raise

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()  # the thread itself keeps its arguments until it ends
        parking = _Parking()
        try:
            while job:
                Context().run(*job)  # costs each client 0.1 KiB
                job = None  # frees what the client used before the wait
                job = self._next(parking)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self, parking: _Parking) -> Job | None:
        """Wait for the next job. None if the thread is to end."""
        thread = threading.current_thread()
        if not thread.daemon:  # at its exit, the interpreter would wait for this thread
            return None
        with self._lock:
            if self._closed or len(self._parked) >= self.max_parked:
                return None
            self._parked.append(parking)
        thread.name = PARKED
        if not parking.ready.acquire(timeout=self.park_seconds):
            with self._lock:
                if parking in self._parked:
                    self._parked.remove(parking)
                    return None
            parking.ready.acquire()  # it was given a job at the last moment
        job, parking.job = parking.job, None
        return job

    def threads(self) -> list[threading.Thread]:
        """Return all threads, busy or waiting."""
        with self._lock:
            return list(self._threads)

    def close(self) -> None:
        """End the waiting threads now, and the busy ones after their job. Idempotent."""
        with self._lock:
            self._closed = True
            while self._parked:
                self._parked.pop().ready.release()

    def reopen(self) -> None:
        """Undo `close`."""
        with self._lock:
            self._closed = False

    def end_in_child(self) -> None:
        """Forget, in a forked child, all threads but the calling one."""
        self._lock = threading.RLock()
        self._parked.clear()
        self._threads = {threading.current_thread()}

    def join(self, timeout: float | None) -> bool:
        """Wait for the end of all threads but the calling one. False if some are still busy.

        `timeout` is the time for all of them together (seconds).
        """
        until = Deadline(timeout)
        for thread in self.threads():
            join(thread, until.remaining())
        return all(thread is threading.current_thread() for thread in self.threads())
