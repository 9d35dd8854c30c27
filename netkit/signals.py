"""Ctrl+C and SIGTERM turned into a graceful stop.

Python runs its signal handlers between two instructions of the main thread, which makes them a
place for races: a signal that comes just before a wait is seen only after it. Here the C handler
writes the signal's number into a socket (`signal.set_wakeup_fd`), the main thread reads it there
like any other message, and the Python handler does nothing. So nothing runs in the midst of
something else, and no moment is too early or too late.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from . import sockets
from .registry import StopReport
from .server import Server

NEWS = 0  # what wakes who reads the mailbox for another reason; no signal has this number

_SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none

SignalHandler = Callable[[int, Any], Any] | int | None


class Mailbox:
    """Numbers from 0 to 255 for one thread, posted by any other, or by a signal's C handler."""

    def __init__(self) -> None:
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)

    def post(self, number: int) -> None:
        """Never blocks: where the box is full, there is news enough. Nothing once it is closed."""
        with contextlib.suppress(OSError):
            self._outbox.send(bytes([number]))

    def take(self) -> int:
        """Wait for the next one."""
        return self._inbox.recv(1)[0]

    def rest(self) -> bytes:
        """Those that there are, up to a hundred; nobody waits."""
        return self._inbox.recv(100) if sockets.readable(self._inbox) else b""

    def fileno(self) -> int:
        """The descriptor to wait for, in `select`."""
        return self._inbox.fileno()

    def outbox_fileno(self) -> int:
        """The descriptor that `post` writes to; it does not block."""
        return self._outbox.fileno()

    def close(self) -> None:
        """Give its descriptors back."""
        self._inbox.close()
        self._outbox.close()


class StopSignals:
    """SIGINT and SIGTERM, caught while the ``with`` block runs; main thread only.

    They, and those given to `catch`, are posted to `mailbox`. The handlers that were there before
    are put back at the end, or `afterwards` if it is given (``signal.SIG_IGN`` for a program that
    is about to exit with a status of its own). ValueError off the main thread.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, afterwards: SignalHandler = None) -> None:
        self._afterwards = afterwards
        self._previous: dict[signal.Signals, SignalHandler] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signals can only be handled in the main thread")
        self.mailbox = Mailbox()
        outbox = self.mailbox.outbox_fileno()
        self._previous_fd = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
        self.catch(*self.SIGNALS)
        return self

    def catch(self, *signals: signal.Signals) -> None:
        """Have these posted, too."""
        for signum in signals:
            self._previous[signum] = signal.signal(signum, _ignore)

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(_tell_unless_late, hook)
        for signum, previous in self._previous.items():
            after = previous
            if self._afterwards is not None and signum in self.SIGNALS:
                after = self._afterwards
            signal.signal(signum, signal.SIG_DFL if after is None else after)
        if self._afterwards is None:  # else it may yet come, until the program exits
            sys.unraisablehook = hook
        signal.set_wakeup_fd(self._previous_fd)
        self.mailbox.close()

    def supervise(self, server: Server, drain_timeout: float | None = None) -> RunReport:
        """Serve until a signal comes or somebody stops the server; then drain, and report.

        The server runs in a thread of its own, and this one waits for signals: the first stops it
        gracefully, a SIGINT after it cuts who is still connected. (A second SIGTERM does not: some
        supervisors send it twice.) SIGHUP reloads; where there is nothing to `reload`, it stops the
        server, too, as when a terminal is closed. Raises what `serve_forever` raises.
        """
        outcome: list[StopReport | BaseException] = []

        def serve() -> None:
            try:
                server.serve_forever()
                outcome.append(server.stop(drain_timeout))
            except BaseException as error:
                outcome.append(error)
            finally:
                self.mailbox.post(NEWS)

        # What it means is asked when it comes; nohup(1), or the program's own handler, has its way.
        default = _SIGHUP is not None and signal.getsignal(_SIGHUP) is signal.SIG_DFL
        if _SIGHUP is not None and (default or server.can_reload):
            self.catch(_SIGHUP)
        thread = threading.Thread(target=serve, name="netkit-serve", daemon=True)
        thread.start()
        stopping = interrupted = False
        while not outcome:
            signum = self.mailbox.take()
            if signum == _SIGHUP and server.can_reload:
                server.reload()
                continue
            if signum not in (*self.SIGNALS, _SIGHUP):
                continue  # the end of the server, or a signal that the program itself handles
            if not stopping:
                stopping = True
                server.request_stop()
            elif signum == signal.SIGINT:
                interrupted = True
                server.close()
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return RunReport(*outcome[0], interrupted)


class RunReport(NamedTuple):
    """How a server ended that was run until a signal: `StopReport`, and by whose patience."""

    finished: int
    cut: int
    interrupted: bool

    def __str__(self) -> str:
        return str(StopReport(self.finished, self.cut))

    @property
    def exit_status(self) -> int:
        """For `sys.exit`: 0 after a drain, 130 (128 + SIGINT) after a second Ctrl+C."""
        return 128 + signal.SIGINT if self.interrupted else 0


def _tell_unless_late(tell: Callable[[Any], object], unraisable: Any) -> None:
    """Of a signal that comes just as its handler is taken away, Python would tell on stderr."""
    if "ignored due to race condition" not in str(unraisable.exc_value):
        tell(unraisable)


def _ignore(signum: int, frame: object) -> None:
    """Python's half of a handler whose work is done by the wake-up descriptor."""
