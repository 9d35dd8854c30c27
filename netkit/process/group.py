"""The servers of one process, which serve in threads of their own, and stop together."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from ..core import events
from ..core.deadline import Deadline
from ..net.bind import explain
from ..server import log
from ..server.registry import StopReport
from ..server.server import Server
from ..server.threads import join
from .reloading import GRACE, Reloads
from .signals import Mailbox, Request

_OF_ALL = (events.StopDelayed, events.Stopping, events.Stopped)  # logged once for all servers


class Group:
    """The servers of one program, which stop together. For the thread that obeys requests."""

    def __init__(
        self,
        servers: Sequence[Server],
        mailbox: Mailbox,
        drain_timeout: float | None = None,
        reopen: Callable[[], bool] | None = None,
        when_ready: Callable[[], object] | None = None,
    ) -> None:
        """`reopen` is that of `Reloads`.

        `when_ready` is called once all servers accept clients. Without it, `Ready` is emitted.
        """
        self.servers, self.mailbox = servers, mailbox
        self.reloads = Reloads(servers, reopen)
        self._services = [_Service(server, drain_timeout, mailbox) for server in servers]
        self.drain_timeout = drain_timeout
        self._is_stopped = False
        self._delay = Deadline(0)  # when the stop begins that has been delayed
        self._when_ready = when_ready or (lambda: events.emit(events.Ready(), servers[0]))
        self._awaited = list(servers)[1:]  # one is removed when another one accepts: thread-safe

    @contextlib.contextmanager
    def logged_as_one(self) -> Iterator[None]:
        """If there are several servers, log one stop and one report, which is that of all."""
        if len(self.servers) == 1:
            yield
            return
        log.logger.addFilter(self._is_not_of_one)
        try:
            yield
        finally:
            log.logger.removeFilter(self._is_not_of_one)

    def _is_not_of_one(self, record: logging.LogRecord) -> bool:
        event = getattr(record, "event", None)
        if not isinstance(event, _OF_ALL):
            return True
        return event.server not in self.servers

    def start(self) -> None:
        """RuntimeError if the system gives no thread."""
        for service in self._services:
            service.server._serving.when_accepting = self._count_accepting
            service.start()

    def _count_accepting(self) -> None:
        try:
            self._awaited.pop()
        except IndexError:
            self._when_ready()

    def has_ended(self) -> bool:
        return all(service.outcome for service in self._services)

    def stop(self) -> None:
        """Stop all servers gracefully, and now: a delay that runs ends."""
        self._delay = Deadline(0)
        self._stop(self._services)

    def stop_later(self) -> None:
        """Stop all servers gracefully, after the longest of their delays."""
        seconds = max(server._options.stop_delay for server in self.servers)
        if not seconds:
            self.stop()
            return
        self._delay = Deadline(seconds)
        if len(self.servers) > 1:
            log.write(events.StopDelayed(seconds))
        for server in self.servers:
            server.request_stop(delay=seconds)

    def is_delayed(self) -> bool:
        """Whether `stop_later` has been called, and the servers still serve."""
        return not self._delay.expired()

    def stop_together(self) -> None:
        """If one of the servers has stopped accepting, stop the others gracefully."""
        accepting = [service for service in self._services if not service.is_stopping]
        if len(accepting) < len(self._services):
            self._stop(accepting)

    def _stop(self, services: Sequence[_Service]) -> None:
        connected = sum(server.connection_count for server in self.servers)
        if connected and not self._is_stopped and len(self.servers) > 1:
            limits = [server._options.drain_timeout for server in self.servers]
            seconds = max(limits) if self.drain_timeout is None else self.drain_timeout
            log.write(events.Stopping(connected, seconds))
        self._is_stopped = True
        for service in services:
            service.server.request_stop()

    def cut(self) -> None:
        """End the stop now."""
        for server in self.servers[1:]:  # so that all are cut before the first `close` waits
            server.request_stop(0)
        for server in self.servers:
            server.close()

    def report(self) -> StopReport:
        """The report on the clients of all. Raises the exception that has ended a service."""
        self.reloads.join(GRACE)
        reports = [service.result() for service in self._services]
        if len(reports) == 1:
            return reports[0]
        total = StopReport(*map(sum, zip(*reports, strict=True)))
        log.write(events.Stopped(*total))
        for server in self.servers:
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


class _Service:
    """A server that serves in a thread of its own, and is stopped there."""

    def __init__(self, server: Server, drain_timeout: float | None, mailbox: Mailbox) -> None:
        self.server = server
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
