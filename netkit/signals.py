"""Ctrl+C and SIGTERM turned into a graceful stop.

Python runs its signal handlers between two instructions of the main thread, which makes them a
place for races: a signal that comes just before a wait is seen only after it. Here the C handler
writes the signal's number into a socket (`signal.set_wakeup_fd`), the main thread reads it there
like any other message, and the Python handler does nothing. So nothing runs in the midst of
something else, and no moment is too early or too late.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from . import events
from .options import check_seconds
from .server import Server, StopReport, create_server

_NEWS = b"\0"  # wakes the main thread when the server has ended; no signal has this number

SignalHandler = Callable[[int, Any], Any] | int | None


class StopSignals:
    """SIGINT and SIGTERM, caught while the ``with`` block runs; main thread only.

    The handlers that were there before are put back at its end, or `afterwards` if it is given
    (``signal.SIG_IGN`` for a program that is about to exit with a status of its own).
    ValueError off the main thread.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, afterwards: SignalHandler = None) -> None:
        self._afterwards = afterwards
        self._previous: dict[signal.Signals, SignalHandler] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signals can only be handled in the main thread")
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        for signum in self.SIGNALS:
            self._previous[signum] = signal.signal(signum, _ignore)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for signum, previous in self._previous.items():
            after = previous if self._afterwards is None else self._afterwards
            signal.signal(signum, signal.SIG_DFL if after is None else after)
        signal.set_wakeup_fd(self._previous_fd)
        self._inbox.close()
        self._outbox.close()

    def supervise(self, server: Server, drain_timeout: float | None = None) -> RunReport:
        """Serve until a signal comes or somebody stops the server; then drain, and report.

        The server runs in a thread of its own, and this one waits for signals: the first stops it
        gracefully, a SIGINT after it cuts who is still connected. (A second SIGTERM does not: some
        supervisors send it twice.) Raises what `serve_forever` raises.
        """
        outcome: list[StopReport | BaseException] = []

        def serve() -> None:
            try:
                server.serve_forever()
                outcome.append(server.stop(drain_timeout))
            except BaseException as error:
                outcome.append(error)
            finally:
                with contextlib.suppress(BlockingIOError):  # it is full: there is news enough
                    self._outbox.send(_NEWS)

        thread = threading.Thread(target=serve, name="netkit-serve", daemon=True)
        thread.start()
        stopping = interrupted = False
        while not outcome:
            signum = self._inbox.recv(1)[0]
            if signum not in self.SIGNALS:
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


def run(server: Server, drain_timeout: float | None = None) -> RunReport:
    """Serve until Ctrl+C or SIGTERM, then stop gracefully: the whole life of a program.

    No one is accepted any more; who is queued already is served; idle clients see the end of input;
    busy ones get `drain_timeout` seconds (None: the server's option) and are then cut. A second
    Ctrl+C cuts at once. `server` is bound already. The signal handlers that were there before are
    put back.

    Off the main thread, where Python cannot handle signals, it says so in the log and serves until
    `Server.stop` or `Server.close` is called.
    """
    if drain_timeout is not None:
        check_seconds("drain_timeout", drain_timeout)
    if threading.current_thread() is not threading.main_thread():
        events.emit(events.SignalsUnavailable())
        server.serve_forever()
        return RunReport(*server.stop(drain_timeout), False)
    with StopSignals() as signals:
        return signals.supervise(server, drain_timeout)


def serve(handler: Any, port: int | str = 0, host: str | None = None, **options: Any) -> RunReport:
    """Bind, serve until Ctrl+C or SIGTERM, stop gracefully: `create_server`, `listen` and `run`."""
    return run(create_server(handler, **options).listen(port, host))


def _ignore(signum: int, frame: object) -> None:
    """Python's half of a handler whose work is done by the wake-up descriptor."""
