"""Tells a service manager, such as systemd, the state of a program: sd_notify(3).

The only process of a program, or the parent of its workers, does so if NOTIFY_SOCKET was set.
Rules:

1. A notification that cannot be sent is dropped: a server serves no worse without its manager.
2. Only the thread that supervises notifies the watchdog, and only if the accepting
   threads have answered since the last time. So an accepting thread that hangs is noticed, and a
   handler that holds the GIL. With workers, the parent asks each of them, and replaces a worker
   that does not answer.
3. While the program starts and stops, the time limits of netkit hold, and not shorter ones of the
   manager (EXTEND_TIMEOUT_USEC). While it serves, no limit is extended.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ..core import events
from ..core.deadline import Deadline
from ..core.text import cut, one_line, several
from ..net.forks import do_not_undo, undo_in_children
from ..net.service_manager import ServiceManager
from ..process.supervised import Supervised
from ..server import log

# Seconds that a start or a stop may take beyond its own limit: clients are cut, threads are joined,
# workers are killed.
SLACK = 3.0
STATUS_SECONDS = 10.0  # between two notifications that differ in the number of connections only
# How often the accepting threads are asked in the time of the watchdog. The manager recommends two
# notifications in that time. With four, a thread may hang for nearly three quarters of it.
BEATS = 4
_SEND_SECONDS = 1.0  # to wait for a manager whose queue is full
_MOST_STATUS = 500  # characters


class Notifier:
    """Sends notifications to one address. Holds a descriptor until `close`. For one thread."""

    def __init__(self, address: str) -> None:
        """`address` is a path, or an abstract name that begins with an ``@``."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._has_waited = False  # in vain, and nothing could be sent since
        with contextlib.suppress(OSError):  # no descriptor is left
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        undo_in_children(self.close)

    def send(self, *assignments: str, seconds: float = _SEND_SECONDS) -> str:
        """Send a notification, such as ``READY=1``, and wait for at most `seconds`.

        After one has waited in vain, the next ones do not wait, until one could be sent. Returns
        why it could not be sent, or an empty text.
        """
        if self._socket is None:
            return "there is no socket for it"
        try:
            self._socket.settimeout(0 if self._has_waited else seconds)
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except (OSError, ValueError) as error:  # ValueError: a null character in the address
            self._has_waited |= isinstance(error, TimeoutError)
            return str(error)
        self._has_waited = False
        return ""

    def close(self) -> None:
        """Send nothing from now on. Idempotent."""
        do_not_undo(self.close)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Notices:
    """The notifications about one program, as a context manager of the thread that supervises it.

    Events are observed in whichever thread they happen.
    """

    def __init__(
        self,
        manager: ServiceManager,
        program: Supervised,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notifier = Notifier(manager.notify_socket)
        self._program = program
        self._clock = clock
        self._watchdog = manager.watchdog
        # Guards what follows, and the order of notifications. Nothing that takes it is called in a
        # signal handler.
        self._lock = threading.Lock()
        self._failures = deque[str]()  # which are logged without the lock
        self._is_ready = self._is_stopping = False
        self._kept = ""  # what the last reload has not reloaded
        self._shown: tuple[str, int | None] | None = None  # phase and workers, as last sent
        self._status = ""
        self._status_due = self._beat_due = self._in(None)

    def _in(self, seconds: float | None) -> Deadline:
        return Deadline(seconds, self._clock)

    def __enter__(self) -> Notices:
        seconds = self._program.start_seconds()
        if seconds is not None:
            with self._in_order():
                self._send_locked(_extend(seconds), "STATUS=starting")
        self._unsubscribe = events.subscribe(self._observe, lambda level: False)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._unsubscribe()
        with self._in_order():
            if error is not None:
                self._send_locked(f"STATUS={_line(str(error) or type(error).__name__)}")
            self._notifier.close()

    def _observe(self, event: events.Event) -> None:
        if not isinstance(event, (events.Ready, events.ReloadBegun, events.ReloadEnded)):
            return  # perhaps in a signal handler, which has interrupted code that holds a lock
        with self._in_order():
            if self._is_stopping:
                return  # which is final for the manager
            if isinstance(event, events.Ready):
                self._is_ready = True
                self._beat_due = self._in(0 if self._watchdog else None)
                self._send_locked("READY=1", self._next_status_locked())
                self._program.wake()
            elif isinstance(event, events.ReloadBegun):
                now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                self._send_locked("RELOADING=1", f"MONOTONIC_USEC={now}")
            else:
                self._kept = event.error
                self._send_locked("READY=1", f"STATUS={_line(event.error or 'reloaded')}")

    # In the thread that supervises

    def stopped(self, report: object) -> None:
        """Tell the manager how the stop has ended."""
        with self._in_order():
            self._send_locked(f"STATUS={_line(str(report))}")

    def due(self) -> Deadline:
        """When `step` is to be called at the latest."""
        return self._status_due.earlier(self._beat_due)

    def step(self) -> None:
        """Do what is due. To be called whenever something may have changed."""
        with self._in_order():
            program = self._program
            if not self._is_stopping and program.phase() == "stopping":
                self._is_stopping = True
                extend = _extend(program.stop_seconds())
                self._send_locked("STOPPING=1", extend, self._next_status_locked())
            if self._beat_due.expired():
                self._beat_locked()
            if self._is_ready and self._shown != (program.phase(), program.workers()):
                self._send_locked(self._next_status_locked())
            elif self._status_due.expired():
                self._send_connections_locked()

    def _beat_locked(self) -> None:
        if self._program.has_answered():
            self._send_locked("WATCHDOG=1", seconds=0)
            self._program.ask(self._watchdog)
        self._beat_due = self._in(self._watchdog / BEATS)

    def _send_connections_locked(self) -> None:
        before = self._status
        if self._next_status_locked() != before:
            self._send_locked(self._status, seconds=0)
        if not self._watchdog:
            self._program.ask(None)  # how many connections each worker has

    def _next_status_locked(self) -> str:
        program = self._program
        phase, workers = self._shown = program.phase(), program.workers()
        text = f"{program.connected()} connected"
        if workers is not None:
            text += f", {several(workers, 'worker')}"
        if phase != "ready":
            text = f"{phase}: {text}"
        if self._kept:
            text = f"{text}; {self._kept}"
        self._status = f"STATUS={_line(text)}"
        self._status_due = self._in(STATUS_SECONDS)
        return self._status

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        with self._lock:
            yield
        while self._failures:
            log.logger.debug("not sent to the service manager: %s", self._failures.popleft())

    def _send_locked(self, *assignments: str, seconds: float = _SEND_SECONDS) -> None:
        reason = self._notifier.send(*assignments, seconds=seconds)
        if reason:
            self._failures.append(f"{assignments[0]}: {reason}")


def _extend(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={round((seconds + SLACK) * 1e6)}"


def _line(text: str) -> str:
    return cut(one_line(text), _MOST_STATUS)
