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

    New clients are no longer accepted; those that are queued already are served; idle clients see
    the end of input; busy ones have `drain_timeout` seconds (None: the server's option) and are
    then cut. A second Ctrl+C cuts at once. SIGHUP calls `Server.reload`, or, if the terminal is
    gone on which the program was started, stops the server, unless the program ignores or handles
    it. `server` is bound already.

    Where the server listens, that it stops, and what goes wrong is written to standard error,
    unless the program has configured logging (or has given the logger ``netkit`` a handler).

    The signal handlers that were there before are put back. Whatever ends it, an exception of one
    of the program's signal handlers included, the server is closed then; but one that cannot be run
    as it is (ServerStateError) is left so.

    `workers`: how many processes serve, ``"auto"`` for as many as suit this machine: see
    `Workers`, which also says what it raises. TypeError if `server` is not a `Server`.

    Off the main thread, where Python cannot handle signals, it says so in the log and serves until
    `Server.stop` or `Server.close` is called.
    """
    if not isinstance(server, Server):
        raise TypeError(f"run() needs a server, not {server!r}; serve() takes a handler")
    if drain_timeout is not None:
        check_seconds("drain_timeout", drain_timeout)
    count = check_workers(workers)
    check_main()
    try:
        with status_lines() as new:
            if new and server._life.state is State.LISTENING:  # which was reported to nobody
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

    `host` None: every address of this machine. For TypeError, ValueError and OSError see `listen`
    and `create_server`.
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
