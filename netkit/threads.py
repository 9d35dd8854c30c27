"""Threads that serve one client after another.

Starting a thread costs more than serving a short connection, so a thread that is done with its
client waits a while for the next one. A thread that is not needed for a while goes away.

Each job begins with an empty context (`contextvars`), also where a new thread would inherit one
(`sys.flags.thread_inherit_context`): what one client has set there, another must not find.
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

from .deadline import Deadline

Job = Callable[[], None]

PARK_SECONDS = 10.0  # how long a thread waits for its next client: longer than lulls, not for ever
# How many wait to be given one, at most: what a burst leaves behind; each costs about 20 KiB.
MAX_PARKED = 64
PARKED = "netkit-parked"  # the name of one that waits


def check_threads() -> None:
    """RuntimeError if a library has put its own in the place of threads, of waits or of sockets.

    gevent and eventlet do, by monkey patching. There a wait of netkit's would stop everything, and
    what one thread has begun to wait for, another one could not use.
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
    """Wait for its end, at most `timeout` seconds, unless it is the calling one.

    Nor is one waited for that is about to be started, or could not be.
    """
    if thread is not threading.current_thread():
        with contextlib.suppress(RuntimeError):  # it has not been started
            thread.join(timeout)


def _no_more(_: float) -> Job | None:
    return None


class _Parked:
    """A thread that waits to be given a job, or to be let go (None).

    By a lock: a `queue.SimpleQueue` may forget its time limit when a signal comes, before 3.13.
    """

    __slots__ = ("_called", "job")

    def __init__(self) -> None:
        self._called = threading.Lock()
        self._called.acquire()
        self.job: Job | None = None

    def wait(self, seconds: float) -> bool:
        """Whether it was called."""
        return self._called.acquire(timeout=seconds)

    def call(self, job: Job | None) -> None:
        self.job = job
        self._called.release()


class ClientThreads:
    """Runs each job in a thread of its own, kept from an earlier job where there is one.

    Thread-safe. `daemon`: whether the interpreter may exit while the threads run; it may be set,
    for the threads to come. `more`: where a thread that is done asks for its next job, and may
    wait for it so many seconds, before it waits to be given one: nobody need be woken for that.
    """

    def __init__(self, daemon: bool, more: Callable[[float], Job | None] = _no_more) -> None:
        self.daemon = daemon
        self._more = more
        # Guards what follows. Re-entrant, for signal handlers that stop a server in the thread that
        # accepts for it.
        self._lock = threading.RLock()
        self._parked: list[_Parked] = []  # the last to come is the first to be called
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def run(self, job: Job) -> None:
        """Have `job` run. RuntimeError, and nothing is run, if no thread can be started.

        What else is raised (KeyboardInterrupt) leaves open whether the job runs.
        """
        with self._lock:
            if self._parked:
                self._parked.pop().call(job)
                return
            thread = threading.Thread(target=self._work, args=([job],), daemon=self.daemon)
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:  # not even a Ctrl+C while waiting for a thread that runs
                with self._lock:
                    self._threads.discard(thread)
            raise

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()  # the thread itself keeps its arguments until it ends
        try:
            while job:
                Context().run(job)  # costs each client 0.1 KiB
                job = None  # what the client used is let go before the wait
                job = self._more(PARK_SECONDS) or self._next()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> Job | None:
        thread = threading.current_thread()
        if not thread.daemon:  # the interpreter's exit would wait for it
            return None
        with self._lock:
            if self._closed or len(self._parked) >= MAX_PARKED:
                return None
            parked = _Parked()
            self._parked.append(parked)
        thread.name = PARKED
        if not parked.wait(PARK_SECONDS):
            with self._lock, contextlib.suppress(ValueError):  # called after all, before the lock
                self._parked.remove(parked)
        return parked.job

    def threads(self) -> list[threading.Thread]:
        """The threads that there are, busy or parked."""
        with self._lock:
            return list(self._threads)

    def close(self) -> None:
        """Let the parked threads go, and the busy ones when they are done. Idempotent."""
        with self._lock:
            self._closed = True
            while self._parked:
                self._parked.pop().call(None)

    def end_in_child(self) -> None:
        """In a forked child: only the calling thread is there, and its job is the last one."""
        self._lock = threading.RLock()
        self._parked.clear()
        self._threads = {threading.current_thread()}
        self._closed = True

    def join(self, timeout: float | None) -> bool:
        """Wait for the threads to be gone, but for the calling one. False if some are still busy.

        `timeout`: seconds for all of them together.
        """
        until = Deadline(timeout)
        for thread in self.threads():
            join(thread, until.remaining())
        return all(thread is threading.current_thread() for thread in self.threads())
