"""Serves with a server of this process until a signal, or another thread, stops it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from ..core import events
from ..core.record import NamedTuple
from ..server.registry import StopReport
from ..server.server import Server
from ..server.threads import join
from .signals import Mailbox, Request, StopSignals, despite_signals

RELOAD_GRACE = 1.0  # seconds that a reload may go on after the server has stopped


class RunReport(NamedTuple):
    """A `StopReport`, and whether a second Ctrl+C cut the stop short."""

    finished: int
    cut: int
    interrupted: bool

    def __str__(self) -> str:
        return str(StopReport(self.finished, self.cut))

    @property
    def exit_status(self) -> int:
        """For `sys.exit`: 0 after a drain, 130 (128 + SIGINT) after a second Ctrl+C."""
        return 128 + signal.SIGINT if self.interrupted else 0


def supervise(
    server: Server, signals: StopSignals, drain_timeout: float | None = None
) -> RunReport:
    """Serve until a signal comes or another thread stops the server; then drain, and report.

    The server runs in a thread of its own; the calling one waits for `signals`. The first SIGINT or
    SIGTERM stops the server gracefully, and a SIGINT after it cuts the clients that are left. (A
    second SIGTERM does not: some supervisors send it twice.) SIGHUP calls `Server.reload`.

    Raises what `serve_forever` raises, and what a signal handler of the program raises. The server
    is closed and the signal handlers are restored then, as at any other end.
    """
    service = _Service(server, drain_timeout, signals.mailbox)
    reloads = Reloads(server, lambda: _reload(server))
    try:
        if server.can_reload and hasattr(signal, "SIGHUP"):
            signals.catch(signal.SIGHUP)  # though the program handles it, too
        service.start()
        interrupted = _obey(signals.mailbox, server, service, reloads)
        reloads.join(RELOAD_GRACE)
        return RunReport(*service.result(), interrupted)
    except BaseException:
        despite_signals(service.abandon)
        raise
    finally:
        signals.close()


def _obey(mailbox: Mailbox, server: Server, service: _Service, reloads: Reloads) -> bool:
    """Obey requests until the service has ended. Return whether its stop was interrupted."""
    stopping = interrupted = False
    while not service.outcome:
        for request in mailbox.wait():
            if service.outcome:
                break
            if request is Request.RELOAD:
                reloads.ask()
            elif request in (Request.STOP, Request.INTERRUPT) and not stopping:
                stopping = True
                server.request_stop()
            elif request is Request.INTERRUPT:
                interrupted = True
                server.close()
    return interrupted


def _reload(server: Server) -> None:
    if server.can_reload:
        server.reload()
    else:
        events.emit(events.NothingToReload(), server)


class _Service:
    """A server that serves in a thread of its own, and is stopped there."""

    def __init__(self, server: Server, drain_timeout: float | None, mailbox: Mailbox) -> None:
        self._server = server
        self._drain_timeout = drain_timeout
        self._mailbox = mailbox
        self.outcome: list[StopReport | BaseException] = []
        self._thread = threading.Thread(target=self._run, name="netkit-serve", daemon=True)

    def start(self) -> None:
        """RuntimeError if the system gives no thread."""
        self._server._accept_loop.expect()  # a signal handler may stop it before the thread runs
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.serve_forever()
            self.outcome.append(self._server.stop(self._drain_timeout))
        except BaseException as error:
            self.outcome.append(error)
        finally:
            self._mailbox.post(Request.LOOK)

    def result(self) -> StopReport:
        """The report on its clients. Raises the exception that has ended the service, if any."""
        self._thread.join()
        if isinstance(self.outcome[0], BaseException):
            raise self.outcome[0]
        return self.outcome[0]

    def abandon(self) -> None:
        """Stop the server at once, whatever it is doing. Idempotent."""
        self._drain_timeout = 0
        self._server.request_stop(0)
        join(self._thread, None)
        self._server.close()


class Reloads:
    """Reloads in a thread of its own, one reload at a time.

    A file may not open (a FIFO without a writer, a file server that is down), and the `reopen` of a
    handler's setting may block. The thread that obeys requests must not wait for that.
    """

    def __init__(self, server: Server, reload: Callable[[], object]) -> None:
        """`reload` is called for each reload, in that thread. What it raises is an event."""
        self._server = server
        self._reload = reload
        self._lock = threading.Lock()  # guards what follows
        self._asked = False  # since the present reload began
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Begin a reload: now, or as soon as the present one has ended."""
        with self._lock:
            self._asked = True
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="netkit-reload", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no thread
            self._run()

    def join(self, seconds: float) -> None:
        """Wait for the end of the present reload, for at most `seconds`."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while self._is_next():
            try:
                self._reload()
            except BaseException as error:  # of an overridden method; `reload` logs all others
                events.emit(events.HookFailed("reload", error), self._server)

    def _is_next(self) -> bool:
        with self._lock:
            if not self._asked:
                self._thread = None
            asked, self._asked = self._asked, False
            return asked
