"""Threads that serve one client after another.

Starting a thread costs more than serving a short connection, so a thread that is done with its
client waits a while for the next one. A thread that is not needed for a while goes away.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from .deadline import Deadline

Job = Callable[[], None]

PARK_SECONDS = 10.0  # how long a thread waits for its next client: longer than lulls, not for ever
MAX_PARKED = 64  # how many wait at most: what a burst leaves behind; each costs about 20 KiB


def _no_more() -> Job | None:
    return None


class ClientThreads:
    """Runs each job in a thread of its own, kept from an earlier job where there is one.

    Thread-safe. `daemon`: whether the interpreter may exit while the threads run; it may be set,
    for the threads to come. `more`: where a thread that is done asks for its next job, before it
    waits to be given one: nobody need be woken for that.
    """

    def __init__(self, daemon: bool, more: Callable[[], Job | None] = _no_more) -> None:
        self.daemon = daemon
        self._more = more
        # Guards what follows; the queue guards itself. Re-entrant, for signal handlers that stop a
        # server in the thread that accepts for it.
        self._lock = threading.RLock()
        self._parked = 0  # threads that wait for a job that is not in the queue yet
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def run(self, job: Job) -> None:
        """Have `job` run. RuntimeError, and nothing is run, if no thread can be started.

        What else is raised (KeyboardInterrupt) leaves open whether the job runs.
        """
        with self._lock:
            if self._parked:
                self._parked -= 1
                self._jobs.put(job)
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
                job()
                job = None  # what the client used is let go before the wait
                job = self._more() or self._next()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> Job | None:
        thread = threading.current_thread()
        if not thread.daemon:  # the interpreter's exit would wait for it
            return None
        with self._lock:
            if self._closed or self._parked >= MAX_PARKED:
                return None
            self._parked += 1
        thread.name = "netkit-parked"
        try:
            return self._jobs.get(timeout=PARK_SECONDS)
        except queue.Empty:
            pass
        with self._lock:
            try:
                return self._jobs.get_nowait()  # it came between the time-out and the lock
            except queue.Empty:
                self._parked -= 1
                return None

    def threads(self) -> list[threading.Thread]:
        """The threads that there are, busy or parked."""
        with self._lock:
            return list(self._threads)

    def close(self) -> None:
        """Let the parked threads go, and the busy ones when they are done. Idempotent."""
        with self._lock:
            self._closed = True
            for _ in range(self._parked):
                self._jobs.put(None)
            self._parked = 0

    def join(self, timeout: float) -> bool:
        """Wait for the threads to be gone, but for the calling one. False if some are still busy.

        `timeout`: seconds for all of them together.
        """
        until = Deadline(timeout)
        for thread in self.threads():
            if thread is not threading.current_thread():
                with contextlib.suppress(RuntimeError):  # it is about to be started
                    thread.join(until.remaining())
        return all(thread is threading.current_thread() for thread in self.threads())
