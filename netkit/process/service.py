"""Serves with servers of this process until a signal, or another thread, stops them."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ..core import events
from ..core.record import NamedTuple
from ..net.bind import explain
from ..server import log
from ..server.life import State
from ..server.registry import StopReport
from ..server.server import Server
from ..server.threads import join
from .hooks import Hooks, Lifespan
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
    servers: Sequence[Server],
    signals: StopSignals,
    drain_timeout: float | None = None,
    hooks: Hooks | None = None,
) -> RunReport:
    """Serve until a signal comes or another thread stops a server; then drain, and report.

    The calling thread waits for `signals`. The first SIGINT or SIGTERM stops all servers
    gracefully, and a SIGINT after it cuts the clients that are left. (A second SIGTERM does not:
    some supervisors send it twice.) SIGHUP calls `Server.reload` of each server.

    `hooks` are called before and after. Raises what `wait_for_end` and `Lifespan.start` raise, and
    what a signal handler of the program raises. The servers are closed and the signal handlers are
    restored then, as at any other end.
    """
    try:
        if any(server.can_reload for server in servers) and hasattr(signal, "SIGHUP"):
            signals.catch(signal.SIGHUP)  # though the program handles it, too
        serve = partial(wait_for_end, servers, signals.mailbox, drain_timeout)
        return within_hooks(hooks, servers, signals.mailbox, serve) if hooks else serve()
    finally:
        signals.close()


def within_hooks(
    hooks: Hooks, servers: Sequence[Server], mailbox: Mailbox, serve: Callable[[], RunReport]
) -> RunReport:
    """Return ``serve()``, which serves with `servers`, and call the hooks before and after.

    It is not called if a server is stopped while `on_start` runs. Raises as `Lifespan.start`, and
    what `serve` raises.
    """
    lifespan = Lifespan(hooks, servers, mailbox)
    report = RunReport(0, 0, False)
    try:
        try:
            if lifespan.start() and all(each._life.state is not State.CLOSED for each in servers):
                report = serve()
        finally:
            despite_signals(lambda: _end(servers, lifespan))
    finally:  # wherever a signal handler has raised an exception
        lifespan.abandon()
    return report._replace(interrupted=report.interrupted or lifespan.interrupted)


def _end(servers: Sequence[Server], lifespan: Lifespan) -> None:
    for server in servers:
        server.close()  # if it has not served
    lifespan.stop()


def wait_for_end(
    servers: Sequence[Server], mailbox: Mailbox, drain_timeout: float | None = None
) -> RunReport:
    """Serve, each server in a thread of its own, and obey the requests in `mailbox`.

    The servers stop together: as soon as one of them stops or fails, the others are stopped
    gracefully. The report is the sum of theirs. Raises what a `serve_forever` raises. If there are
    several servers, the loss of a listener is an OSError.
    """
    group = _Group(servers, drain_timeout, mailbox)
    try:
        with group.logged_as_one():
            group.start()
            interrupted = _obey(mailbox, group)
            return RunReport(*group.report(), interrupted)
    except BaseException:
        despite_signals(group.abandon)
        raise


def _obey(mailbox: Mailbox, group: _Group) -> bool:
    """Obey requests until all services have ended. Return whether the stop was interrupted."""
    stopping = interrupted = False
    while not group.has_ended():
        for request in mailbox.wait():
            if group.has_ended():
                break
            if request is Request.RELOAD:
                group.reload()
            elif request in (Request.STOP, Request.INTERRUPT) and not stopping:
                stopping = True
                group.stop()
            elif request is Request.INTERRUPT:
                interrupted = True
                group.cut()
            else:
                group.stop_together()
    return interrupted


class _Group:
    """The servers of one program, which stop together. For the thread that obeys requests."""

    def __init__(
        self, servers: Sequence[Server], drain_timeout: float | None, mailbox: Mailbox
    ) -> None:
        self._services = [_Service(server, drain_timeout, mailbox) for server in servers]
        self._servers = servers
        self._drain_timeout = drain_timeout
        self._is_stopped = False

    @contextlib.contextmanager
    def logged_as_one(self) -> Iterator[None]:
        """If there are several servers, log one stop and one report, which is that of all."""
        if len(self._servers) == 1:
            yield
            return
        log.logger.addFilter(self._is_not_of_one)
        try:
            yield
        finally:
            log.logger.removeFilter(self._is_not_of_one)

    def _is_not_of_one(self, record: logging.LogRecord) -> bool:
        event = getattr(record, "event", None)
        if not isinstance(event, (events.Stopping, events.Stopped)):
            return True
        return event.server not in self._servers

    def start(self) -> None:
        """RuntimeError if the system gives no thread."""
        for service in self._services:
            service.start()

    def has_ended(self) -> bool:
        return all(service.outcome for service in self._services)

    def stop(self) -> None:
        """Stop all servers gracefully."""
        self._stop(self._services)

    def stop_together(self) -> None:
        """If one of the servers has stopped accepting, stop the others gracefully."""
        accepting = [service for service in self._services if not service.is_stopping]
        if len(accepting) < len(self._services):
            self._stop(accepting)

    def _stop(self, services: Sequence[_Service]) -> None:
        connected = sum(server.connection_count for server in self._servers)
        if connected and not self._is_stopped and len(self._servers) > 1:
            limits = [server._options.drain_timeout for server in self._servers]
            seconds = max(limits) if self._drain_timeout is None else self._drain_timeout
            log.write(events.Stopping(connected, seconds))
        self._is_stopped = True
        for service in services:
            service.server.request_stop()

    def cut(self) -> None:
        """End the stop now."""
        for server in self._servers[1:]:  # so that all are cut before the first `close` waits
            server.request_stop(0)
        for server in self._servers:
            server.close()

    def reload(self) -> None:
        """Begin to reload the servers that can reload."""
        able = [service for service in self._services if service.server.can_reload]
        for service in able or self._services[:1]:
            service.reloads.ask()

    def report(self) -> StopReport:
        """The report on the clients of all. Raises the exception that has ended a service."""
        for service in self._services:
            service.reloads.join(RELOAD_GRACE)
        reports = [service.result() for service in self._services]
        if len(reports) == 1:
            return reports[0]
        total = StopReport(*map(sum, zip(*reports, strict=True)))
        log.write(events.Stopped(*total))
        for server in self._servers:
            error = server._accept_loop.lost
            if error is not None:
                raise explain(error, server.server_address, "accept") from None
        return total

    def abandon(self) -> None:
        """Stop the servers at once, whatever they are doing. Idempotent."""
        for service in self._services:
            service.cut()
        for service in self._services:
            service.close()


def _reload(server: Server) -> None:
    if server.can_reload:
        server.reload()
    else:
        events.emit(events.NothingToReload(), server)


class _Service:
    """A server that serves in a thread of its own, and is stopped there."""

    def __init__(self, server: Server, drain_timeout: float | None, mailbox: Mailbox) -> None:
        self.server = server
        self.reloads = Reloads(server, lambda: _reload(server))
        self.is_stopping = False
        """Whether the server accepts no more clients."""
        self.outcome: list[StopReport | BaseException] = []
        self._drain_timeout = drain_timeout
        self._mailbox = mailbox
        self._thread = threading.Thread(target=self._run, name="netkit-serve", daemon=True)

    def start(self) -> None:
        """RuntimeError if the system gives no thread."""
        self.server._accept_loop.expect()  # a signal handler may stop it before the thread runs
        self._thread.start()

    def _run(self) -> None:
        try:
            try:
                self.server.serve_forever()
            finally:
                self.is_stopping = True
                self._mailbox.post(Request.LOOK)
            self.outcome.append(self.server.stop(self._drain_timeout))
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

    def cut(self) -> None:
        """Have the server stop at once, whatever it is doing. Idempotent."""
        self._drain_timeout = 0
        self.server.request_stop(0)

    def close(self) -> None:
        """Wait for the end of the service, which has been cut, and close the server. Idempotent."""
        join(self._thread, None)
        self.server.close()


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
