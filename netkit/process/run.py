"""The whole life of a program that serves: `run` a server, or `serve` with a handler."""

from __future__ import annotations

import threading
from typing import Any

from ..core import events
from ..core.cores import check_workers
from ..core.errors import ServerStateError
from ..core.kinds import check_seconds
from ..net.forks import check_main
from ..server import log
from ..server.life import State
from ..server.log_config import status_lines
from ..server.server import Server, create_server
from .service import RunReport, supervise
from .signals import StopSignals, despite_signals


def run(server: Server, drain_timeout: float | None = None, workers: int | str = 1) -> RunReport:
    """Serve until Ctrl+C or SIGTERM, then stop gracefully.

    A stop accepts no more clients, and serves those that are queued already. Idle clients see the
    end of input. Busy clients have `drain_timeout` seconds (by default the server's option), and
    are then cut. A second Ctrl+C cuts at once. SIGHUP calls `Server.reload`; it stops the server if
    the terminal is lost on which the program was started, unless the program ignores or handles
    SIGHUP. `server` must be bound.

    Where the server listens, that it stops, and errors are written to standard error, unless the
    program has configured logging (or has given the logger ``netkit`` a handler).

    At the end, the former signal handlers are restored and the server is closed, also after an
    exception of a signal handler of the program. After ServerStateError the server is as before.

    `workers` is the number of processes that serve, or ``"auto"`` for as many as suit this machine.
    For these, and for what is raised, see `Workers`. TypeError if `server` is not a `Server`.

    Off the main thread, Python cannot handle signals. Then the log says so, and `Server.stop` or
    `Server.close` ends the call.
    """
    if not isinstance(server, Server):
        raise TypeError(f"run() needs a server, not {server!r}; serve() takes a handler")
    if drain_timeout is not None:
        check_seconds("drain_timeout", drain_timeout)
    count = check_workers(workers)
    check_main()
    try:
        with status_lines() as new:
            if new and server._life.state is State.LISTENING:  # which has not been logged
                for event in server._listeners.announced:
                    log.write(event)
            return _run(server, drain_timeout, count)
    except ServerStateError:
        raise
    except BaseException:
        despite_signals(server.close)
        raise


def _run(server: Server, drain_timeout: float | None, workers: int) -> RunReport:
    if workers > 1:
        from .supervisor import Workers  # here because most programs have one process

        return Workers(server, workers).run(drain_timeout)
    if threading.current_thread() is not threading.main_thread():
        events.emit(events.SignalsUnavailable(), server)
        server.serve_forever()
        return RunReport(*server.stop(drain_timeout), False)
    with StopSignals() as signals:
        return supervise(server, signals, drain_timeout)


def serve(
    handler: Any,
    port: int | str = 0,
    host: str | None = None,
    *,
    workers: int | str = 1,
    **options: Any,
) -> RunReport:
    """Bind, serve until Ctrl+C or SIGTERM, stop gracefully: `create_server`, `listen` and `run`.

    Without `host`, it listens on every address of this machine. For TypeError, ValueError and
    OSError see `listen` and `create_server`.
    """
    check_workers(workers)
    check_main()
    server = create_server(handler, **options)
    try:
        with status_lines():
            return run(server.listen(port, host), workers=workers)
    except BaseException:
        despite_signals(server.close)
        raise
