"""The whole life of a program that serves: `run` servers, or `serve` with a handler."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from ..core import events
from ..core.cores import check_workers
from ..core.errors import ServerStateError
from ..core.kinds import check_seconds
from ..net.forks import check_main
from ..net.service_manager import service_manager
from ..process.group import Group
from ..process.hooks import Hook, Hooks
from ..process.service import RunReport, serve_together, supervise
from ..process.signals import Mailbox, StopSignals, despite_signals
from ..server import log
from ..server.life import State
from ..server.log_config import status_lines
from ..server.server import Server, create_server
from .attachment import Operations

if TYPE_CHECKING:
    from typing import Literal

    from typing_extensions import Unpack

    from ..server.signatures import AnyHandler, ServerOptions


@overload
def run(
    server: Server,
    drain_timeout: float | None = None,
    workers: int | Literal["auto"] = 1,
    *,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    status: str | int | None = None,
    control: str | os.PathLike[str] | None = None,
    access_log: str | os.PathLike[str] | None = None,
    stuck: float | None = None,
) -> RunReport: ...
@overload
def run(
    server: Server,
    *more: Server,
    drain_timeout: float | None = None,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    status: str | int | None = None,
    control: str | os.PathLike[str] | None = None,
    access_log: str | os.PathLike[str] | None = None,
    stuck: float | None = None,
) -> RunReport: ...
def run(
    server: Server,
    *more: Any,
    drain_timeout: float | None = None,
    workers: int | Literal["auto"] = 1,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    status: str | int | None = None,
    control: str | os.PathLike[str] | None = None,
    access_log: str | os.PathLike[str] | None = None,
    stuck: float | None = None,
) -> RunReport:
    """Serve until Ctrl+C or SIGTERM, then stop gracefully.

    A stop accepts no more clients, and serves those that are queued already. Idle clients see the
    end of input. Busy clients have `drain_timeout` seconds (by default the server's option), and
    are then cut. A second Ctrl+C cuts at once. SIGHUP calls `Server.reload`; it stops the server if
    the terminal is lost on which the program was started, unless the program ignores or handles
    SIGHUP. `server` must be bound.

    `more` are further servers, which are bound, too: ``run(service, admin)``. All of them serve in
    this process and stop together. The report is the sum of theirs. If one of them is stopped, by
    its method `stop` for instance, the others are stopped gracefully. If one of them fails, or its
    listener does, the others are stopped gracefully, and the error is raised.

    Where the servers listen, that they stop, and errors are written to standard error, unless the
    program has configured logging (or has given the logger ``netkit`` a handler).

    At the end, the former signal handlers are restored and the servers are closed, also after an
    exception of a signal handler of the program. After ServerStateError they are as before.

    `workers` is the number of processes that serve, or ``"auto"`` for as many as suit this machine.
    For these, and for what is raised, see `Workers`. Several servers have one process: ValueError
    for more. TypeError if `server` is not a `Server`; ValueError if a server is given twice.

    ``on_start(server)`` is called in each process that serves, before the first client is accepted,
    and ``on_stop(server)`` once the clients are gone: to open and to close a database, for example.
    (With several servers they are called with all of them.) If `on_start` returns a context
    manager, netkit enters it, and exits it after `on_stop`. Both are called in one thread, which is
    not the main thread. What `on_start` raises is raised here, and `on_stop` is not called then;
    what `on_stop` raises is logged. If `on_start` has not returned after 240 seconds, TimeoutError;
    if `on_stop` has not after 5 seconds, that is logged. TypeError for an invalid hook.

    For operators (docs/operations.md): `status` is the address of the status endpoint, a port of
    127.0.0.1 for example; `control` is the path of the control socket. `access_log` names the file
    that gets a line for each connection, or is ``"-"`` for standard output. `stuck` is the number
    of seconds after which a handler that neither reads nor writes is logged. OSError or ValueError
    if one of them cannot be had. SIGUSR1 writes a report into the log, unless the program ignores
    or handles it.

    Off the main thread, Python cannot handle signals. Then the log says so, and `Server.stop` or
    `Server.close` ends the call.
    """
    servers, drain_timeout, workers = _arguments([server, *more], drain_timeout, workers)
    if drain_timeout is not None:
        check_seconds("drain_timeout", drain_timeout)
    count = check_workers(workers)
    if len(servers) > 1:
        _check_several(servers, count)
    hooks = Hooks(on_start, on_stop, servers=len(servers))
    attachment = Operations(status, control, access_log, stuck)
    check_main()
    try:
        with status_lines() as new, contextlib.closing(attachment):
            attachment.open(servers)
            for each in servers:
                if new and each._life.state is State.LISTENING:  # which has not been logged
                    for event in each._listeners.announced:
                        log.write(event)
            return _run(servers, drain_timeout, count, hooks, attachment)
    except ServerStateError:
        raise
    except BaseException:
        for each in servers:
            despite_signals(each.close)
        raise


def _arguments(
    given: list[Any], drain_timeout: float | None, workers: int | Literal["auto"]
) -> tuple[list[Server], float | None, int | Literal["auto"]]:
    """Return the servers, and the two arguments that may follow them by position."""
    servers = list(itertools.takewhile(lambda it: isinstance(it, Server), given))
    rest = given[len(servers) :]
    if not servers or len(rest) > 2 or not isinstance((*rest, None)[0], (int, float, type(None))):
        wrong = given[0] if not servers else rest[0]
        raise TypeError(f"run() needs a server, not {wrong!r}; serve() takes a handler")
    return servers, *rest, *(drain_timeout, workers)[len(rest) :]


def _check_several(servers: Sequence[Server], workers: int) -> None:
    """ValueError or ServerStateError unless one process can serve with each of `servers`."""
    if workers > 1:
        raise ValueError("several servers run in one process: workers must be 1")
    if len(set(map(id, servers))) < len(servers):
        raise ValueError("run() was given the same server twice")
    for server in servers:
        server._serving.check_for_run()


def _run(
    servers: Sequence[Server],
    drain_timeout: float | None,
    workers: int,
    hooks: Hooks,
    attachment: Operations,
) -> RunReport:
    if workers > 1:
        from ..process.supervisor import Workers  # here because most programs have one process

        named: dict[str, Any] = (
            {"on_start": hooks.on_start, "on_stop": hooks.on_stop} if hooks else {}
        )
        return Workers(servers[0], workers, attachment=attachment, **named).run(drain_timeout)
    if threading.current_thread() is threading.main_thread():
        with StopSignals(survives_terminal=attachment.survives_terminal) as signals:
            return supervise(servers, signals, drain_timeout, hooks, attachment)
    server, *more = servers
    events.emit(events.SignalsUnavailable(), server)
    if not (hooks or more or attachment.attaches or service_manager().notify_socket):
        server._serving.when_accepting = lambda: events.emit(events.Ready(), server)
        server.serve_forever()
        return RunReport(*server.stop(drain_timeout), False)
    with contextlib.closing(Mailbox()) as mailbox:
        group = Group(servers, mailbox, drain_timeout, attachment.reopen)
        return serve_together(group, hooks, attachment)


def serve(
    handler: AnyHandler,
    port: int | str = 0,
    host: str | None = None,
    *,
    workers: int | Literal["auto"] = 1,
    on_start: Hook | None = None,
    on_stop: Hook | None = None,
    status: str | int | None = None,
    control: str | os.PathLike[str] | None = None,
    access_log: str | os.PathLike[str] | None = None,
    stuck: float | None = None,
    **options: Unpack[ServerOptions],
) -> RunReport:
    """Bind, serve until Ctrl+C or SIGTERM, stop gracefully: `create_server`, `listen` and `run`.

    Without `host`, it listens on every address of this machine. For TypeError, ValueError and
    OSError see `listen` and `create_server`; for the other arguments, see `run`.
    """
    check_workers(workers)
    Hooks(on_start, on_stop)
    check_main()
    server = create_server(handler, **options)
    try:
        server.listen(port, host)  # `run` logs it, once the operators' endpoints are open
        return run(
            server,
            workers=workers,
            on_start=on_start,
            on_stop=on_stop,
            status=status,
            control=control,
            access_log=access_log,
            stuck=stuck,
        )
    except BaseException:
        despite_signals(server.close)
        raise
