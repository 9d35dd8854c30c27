"""Serves with servers of this process until a signal, or another thread, stops them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ..core.record import NamedTuple
from ..server.life import State
from ..server.registry import StopReport
from ..server.server import Server
from .errand import Errand
from .group import Group
from .hooks import Hooks, Lifespan
from .local import LocalProgram
from .program import Attachment
from .signals import Request, StopSignals, despite_signals
from .supervised import Notices, SupervisedGroup, notices_of


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
    attachment: Attachment | None = None,
    when_ready: Callable[[], object] | None = None,
) -> RunReport:
    """Serve until a signal comes or another thread stops a server; then drain, and report.

    The calling thread waits for `signals`. The first SIGINT or SIGTERM stops all servers
    gracefully, SIGTERM after their `stop_delay`. A SIGINT ends that delay, and a SIGINT after the
    beginning of the stop cuts the clients that are left. (A second SIGTERM does neither: some
    supervisors send it twice.) SIGHUP calls `Server.reload` of each server, and SIGUSR1
    `Attachment.report`.

    `hooks` are called before and after. Raises what `serve_together` raises, and what a signal
    handler of the program raises. The servers are closed and the signal handlers are restored then,
    as at any other end. The caller opens and closes `attachment`; `when_ready` is for a `Group`.
    """
    try:
        if any(server.can_reload for server in servers) and hasattr(signal, "SIGHUP"):
            signals.catch(signal.SIGHUP)  # though the program handles it, too
        reopen = None if attachment is None else attachment.reopen
        group = Group(servers, signals.mailbox, drain_timeout, reopen, when_ready)
        return serve_together(group, hooks, attachment)
    finally:
        signals.close()


def serve_together(
    group: Group, hooks: Hooks | None = None, attachment: Attachment | None = None
) -> RunReport:
    """Attach `attachment`, call the hooks, and serve until the end.

    Raises what `wait_for_end`, `Lifespan.start` and the methods of the attachment raise.
    """
    program = SupervisedGroup(group, hooks)
    with attached(group, attachment) as report, notices_of(attachment, program) as notices:
        serve = partial(wait_for_end, group, report, notices)
        if not hooks:
            outcome = serve()
        else:
            lifespan = Lifespan(
                hooks, group.servers, group.mailbox, partial(_stop_early, program, notices)
            )
            outcome = within_hooks(lifespan, group.servers, serve)
        notices.stopped(outcome)
        return outcome


@contextlib.contextmanager
def attached(group: Group, attachment: Attachment | None) -> Iterator[Callable[[], object]]:
    """Attach to the servers of `group`, and start the endpoints, while the block runs.

    Yields a function that begins to write a report into the log.
    """
    if attachment is None:
        yield lambda: None
        return
    servers, mailbox = group.servers, group.mailbox
    program = LocalProgram(
        servers, attachment, lambda: mailbox.post(Request.RELOAD), group.reloads.counts
    )
    with contextlib.ExitStack() as stack:
        stack.callback(program.detach)
        if attachment.attaches or attachment.has_endpoints:
            program.attach()
        if attachment.has_endpoints:
            stack.callback(attachment.serve(program).close)
        yield Errand("report", lambda: attachment.report(program), servers[0]).ask


def _stop_early(program: SupervisedGroup, notices: Notices) -> None:
    """Tell the service manager of a stop that was requested before `on_start` has returned."""
    program.stops_early = True
    notices.step()


def within_hooks(
    lifespan: Lifespan, servers: Sequence[Server], serve: Callable[[], RunReport]
) -> RunReport:
    """Return ``serve()``, which serves with `servers`, and call the hooks before and after.

    It is not called if a server is stopped while `on_start` runs. Raises as `Lifespan.start`, and
    what `serve` raises.
    """
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


def wait_for_end(group: Group, report: Callable[[], object], notices: Notices) -> RunReport:
    """Serve, each server in a thread of its own, and obey the requests in the group's mailbox.

    The servers stop together: as soon as one of them stops or fails, the others are stopped
    gracefully. The report is the sum of theirs. Raises what a `serve_forever` raises. If there are
    several servers, the loss of a listener is an OSError. ``report()`` begins to write a report
    into the log. `notices` tells a service manager what happens.
    """
    try:
        with group.logged_as_one():
            group.start()
            interrupted = _obey(group, report, notices)
            return RunReport(*group.report(), interrupted)
    except BaseException:
        despite_signals(group.abandon)
        raise


def _obey(group: Group, report: Callable[[], object], notices: Notices) -> bool:
    """Obey requests until all services have ended. Return whether the stop was interrupted."""
    stopping = interrupted = False
    while not group.has_ended():
        for request in group.mailbox.wait(notices.due().remaining()):
            if group.has_ended():
                break
            if request is Request.RELOAD:
                group.reloads.ask()
            elif request is Request.REPORT:
                report()
            elif request is Request.STOP and not stopping:
                stopping = True
                group.stop_later()
            elif request is Request.INTERRUPT and (group.is_delayed() or not stopping):
                stopping = True
                group.stop()
            elif request is Request.INTERRUPT:
                interrupted = True
                group.cut()
            else:
                group.stop_together()
        notices.step()
    return interrupted
