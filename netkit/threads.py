"""Threads that serve one client after another.

Starting a thread costs more than serving a short connection, so a thread that is done with its
client waits a while for the next one. A thread that is not needed for a while goes away.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from .deadline import Deadline

Job = Callable[[], None]

PARK_SECONDS = 10.0  # how long a thread waits for its next client: longer than lulls, not for ever
MAX_PARKED = 64  # how many wait at most: what a burst leaves behind; each costs about 20 KiB


class ClientThreads:
    """Runs each job in a thread of its own, kept from an earlier job where there is one.

    Thread-safe. `daemon`: whether the interpreter may exit while the threads run.
    """

    def __init__(self, daemon: bool) -> None:
        self._daemon = daemon
        self._lock = threading.Lock()  # guards what follows; the queue guards itself
        self._parked = 0  # threads that wait for a job that is not in the queue yet
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def run(self, job: Job) -> None:
        """Have `job` run. RuntimeError, and nothing is run, if no thread can be started."""
        with self._lock:
            if self._parked:
                self._parked -= 1
                self._jobs.put(job)
                return
            thread = threading.Thread(target=self._work, args=(job,), daemon=self._daemon)
            self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._threads.discard(thread)
            raise

    def _work(self, job: Job | None) -> None:
        try:
            while job:
                job()
                job = None  # what the client used is let go before the wait
                threading.current_thread().name = "netkit-parked"
                job = self._next()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self) -> Job | None:
        with self._lock:
            if self._closed or self._parked >= MAX_PARKED:
                return None
            self._parked += 1
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
                thread.join(until.remaining())
        return all(thread is threading.current_thread() for thread in self.threads())
