"""Several worker processes on the same listeners, and the parent that starts and replaces them.

Rules:

1. The parent opens the listeners, so that the clients in their queues outlive any worker. It
   accepts no client, and starts no thread but for a reload, so that it may fork.
2. It waits in one place, for its workers, for signals and for orders. It does not poll.
3. `netkit.process.crew` decides which workers there are to be.
"""

from __future__ import annotations

import contextlib
import operator
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.cores import MAX_WORKERS, check_workers
from ..core.deadline import wait_time
from ..core.errors import WorkersFailedError
from ..core.kinds import check_seconds
from ..core.text import printable
from ..net.forks import check_main, do_not_undo, undo_in_children
from ..server.log_config import status_lines
from ..server.registry import StopReport
from ..server.reload import configure, pems_in_memory
from ..server.server import Server
from .application import adopt
from .channel import Stop
from .crew import Crew, Pace
from .errand import Errand
from .hooks import Hook, Hooks
from .reloading import GRACE, Announcer, failures
from .service import RunReport
from .shared import SharedNumbers, SharedPlaces, check_places
from .signals import Mailbox, Request, StopSignals, despite_signals
from .supervised import Notices, SupervisedCrew, notices_of
from .work import core_of, recipe_of, work
from .worker import PARENTS_SIGNALS, Worker, context_of, prepare

if TYPE_CHECKING:
    from typing import Literal

    from .application import Load
    from .program import Attachment


class Workers:
    """`count` processes that serve what `server` is bound to. ``netkit.run(server, workers=4)``.

    `run` serves. `resize`, `reload` and `stop` may be called meanwhile, from any thread and from
    signal handlers; none of them waits. In the main thread, signals do the same: SIGTTIN and
    SIGTTOU for one worker more or less, SIGHUP to reload, SIGINT and SIGTERM to stop.

    `load`, if it is given, is called in each worker and returns its handler: the parent itself then
    never imports it. Without it, the workers have the handler of `server`. `on_start` and `on_stop`
    are called in each worker, as `run` has it. They must be functions at the top of a module if the
    workers are spawned. A worker whose `on_start` raises does not serve: if no worker ever has,
    `run` raises WorkersFailedError; else another one is started, after a pause that grows.

    Processes are forked where that is safe (Linux, and one thread in this process), else spawned;
    or started as `multiprocessing.set_start_method` says. A spawned worker imports the main module
    again, so a script must start its server under ``if __name__ == "__main__"``. It also makes the
    server again, so the handler must be a function or class at the top of a module. A reload
    spawns, too, unless there is a `load`.
    """

    def __init__(
        self,
        server: Server,
        count: int | Literal["auto"] = "auto",
        load: Load | None = None,
        *,
        on_start: Hook | None = None,
        on_stop: Hook | None = None,
        attachment: Attachment | None = None,
    ) -> None:
        """TypeError or ValueError for an invalid count, hook, or limit that cannot be shared.

        `attachment` is what netkit itself attaches for operators.
        """
        check_places(server._options.max_connections)
        self._server = server
        self._load = load
        self._hooks, self._attachment = Hooks(on_start, on_stop), attachment
        server._listeners.is_silent = load is not None
        self._orders: deque[Callable[[], object]] = deque()  # thread-safe, and without a lock
        self._mailbox: Mailbox | None = None
        self._reloads = Errand("reload", self._read_files, server)
        self._announcer = announcer = Announcer(self._emit)
        number = check_workers(count)
        self._crew = Crew(number, self._start, self._leave, self._read, announcer, Pace())
        self._stop_seconds = 0.0  # after which the last clients are to be cut
        self._thread: int | None = None  # the one that runs
        self._ended = threading.Event()
        self._report = StopReport(0, 0)
        self._places: SharedPlaces | None = None  # if there is a limit
        self._numbers: SharedNumbers | None = None
        self._pems: dict[str, Any] = {}  # the last valid files of TLS, for spawned workers

    @property
    def stopping(self) -> bool:
        """Whether all workers are to end, or have ended."""
        return self._crew.stopping

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of the processes, including those that only finish with their clients."""
        return tuple(worker.pid for worker in tuple(self._crew.workers))

    def resize(self, count: int | Literal["auto"]) -> None:
        """Have `count` workers from now on. Those above it finish with their clients, and end.

        TypeError or ValueError for an invalid count.
        """
        number = check_workers(count)
        self._order(lambda: self._crew.resize(number))

    def reload(self) -> None:
        """Replace all by new ones, which have the handler's present code."""
        self._order(self._crew.begin_reload)

    def stop(self, timeout: float | None = None, patience: float = 0.0, delay: float = 0.0) -> None:
        """End `run` gracefully, as `Server.stop` does. Returns at once.

        The methods that stop the `Server` do so, too, and wait for the end.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        check_seconds("patience", patience)
        self._order(lambda: self._stop(timeout, patience))

    def outcome(self) -> StopReport:
        """The report on the clients. Waits for the end of `run`, except in the thread of `run`."""
        if threading.get_ident() != self._thread:
            self._ended.wait()
        return self._report

    def _order(self, order: Callable[[], object]) -> None:
        """Have the thread of `run` call `order`."""
        self._orders.append(order)
        mailbox = self._mailbox
        if mailbox is not None:
            mailbox.post(Request.LOOK)

    # The parent's life

    def run(self, drain_timeout: float | None = None) -> RunReport:
        """Serve until a signal or `stop`, and report on all the clients.

        `drain_timeout` is that of `netkit.run`. WorkersFailedError if no worker can be brought to
        serve; ServerStateError if the server is not bound, or closed. Off the main thread there
        are no signals, and `stop` is the way to end it.
        """
        with status_lines():
            if threading.current_thread() is threading.main_thread():
                with StopSignals() as signals:
                    return self.supervise(signals, drain_timeout)
            self._emit(events.SignalsUnavailable())
            with contextlib.closing(Mailbox()) as mailbox:
                return self._supervise(mailbox, drain_timeout)

    def supervise(self, signals: StopSignals, drain_timeout: float | None = None) -> RunReport:
        """As `run`, where the stop signals are caught already. For the main thread only."""
        signals.catch(*PARENTS_SIGNALS)
        if not callable(signal.getsignal(signal.SIGCHLD)):  # else that handler ends the wait
            signals.disregard(signal.SIGCHLD)
        return self._supervise(signals.mailbox, drain_timeout)

    def _supervise(self, mailbox: Mailbox, drain_timeout: float | None) -> RunReport:
        self._server._serving.check_for_workers(needs_handler=self._load is None)
        check_main()
        configured = self._server._options.drain_timeout
        try:
            undo_in_children(self._crew.workers.clear)  # a forked child has no workers
            if drain_timeout is not None:  # also for workers that a signal stops directly
                configure(self._server._configuration, {"drain_timeout": drain_timeout})
            self._begin(mailbox)
            program = SupervisedCrew(self._crew, mailbox, lambda: self._stop_seconds)
            with notices_of(self._attachment, program) as notices:
                interrupted = self._live(mailbox, notices)
                notices.stopped(self._report)
        finally:
            despite_signals(lambda: self._clean_up(configured))
        if self._crew.why_failed is not None:
            error = WorkersFailedError(printable(self._crew.why_failed))
            error.exit_status = self._crew.exit_status
            raise error
        self._emit(events.Stopped(*self._report))
        return RunReport(*self._report, interrupted)

    def _begin(self, mailbox: Mailbox) -> None:
        server = self._server
        self._keep_files()
        self._mailbox = mailbox
        mailbox.post(Request.LOOK)  # there may be orders from before
        self._thread = threading.get_ident()
        order = server._drain.delegate(self)
        if order is not None:
            self._stop(*order[:2])
        limit = server._options.max_connections
        if limit is not None or self._load is not None:  # which may set one
            try:
                self._places = SharedPlaces(limit)
            except OSError as error:
                raise WorkersFailedError(error.strerror) from None
        with contextlib.suppress(OSError):  # then each worker numbers its own connections
            self._numbers = SharedNumbers()

    def _clean_up(self, drain_timeout: float) -> None:
        """Leave nothing behind, whatever has ended it. Idempotent."""
        workers = self._crew.workers
        for worker in tuple(workers):
            worker.kill()
            worker.check()
            workers.remove(worker)
        do_not_undo(workers.clear)
        self._mailbox = None
        self._crew.stopping = True
        self._server.server_close()
        configure(self._server._configuration, {"drain_timeout": drain_timeout})
        self._server._drain.end_delegation(self._report)
        self._ended.set()
        if self._places is not None:
            self._places.close()
            self._places = None
        if self._numbers is not None:
            self._numbers.close()

    def _live(self, mailbox: Mailbox, notices: Notices) -> bool:
        """Wait until all have ended. Return whether a Ctrl+C came while they were ending."""
        from multiprocessing.connection import wait

        crew, interrupted = self._crew, False
        while crew.workers or not crew.stopping:
            due = crew.next_step().earlier(notices.due())
            wait([mailbox.fileno(), *crew.descriptors()], wait_time(due.remaining()))
            ended = crew.check()
            self._learn()
            # Requests come second: a signal to all processes may have ended the workers.
            for request in mailbox.rest():
                interrupted |= request is Request.INTERRUPT and crew.stopping
                self._obey(request)
            for worker in ended:
                self._lose(worker)
            crew.step()
            if crew.why_failed is not None:
                self._stop()
            notices.step()
        # The last workers may have ended by a Ctrl+C that this process has not seen yet.
        return interrupted or Request.INTERRUPT in mailbox.rest()

    def _learn(self) -> None:
        """Adopt the options of workers that have loaded an application since the last call."""
        for worker in self._crew.workers:
            if worker.loaded is not None and not worker.is_known:
                worker.is_known = True
                adopt(self._server, worker.loaded)

    def _obey(self, request: Request) -> None:
        while self._orders:
            self._orders.popleft()()
        crew = self._crew
        if request is Request.STOP:
            self._stop()
        elif request is Request.INTERRUPT:
            self._stop(0 if crew.stopping else None)
        elif request is Request.RELOAD:
            crew.begin_reload()
        elif request is Request.MORE:
            crew.resize(min(crew.count + 1, MAX_WORKERS))
        elif request is Request.FEWER:
            crew.resize(max(crew.count - 1, 1))

    # The methods that the crew calls

    def _start(self, worker: Worker) -> None:
        import multiprocessing

        chosen = multiprocessing.get_start_method(allow_none=True)
        try:
            # A copy of this process would have the old code.
            context = context_of(fresh=worker.generation > 0 and self._load is None)
            source: Any = self._server
            if context.get_start_method() != "fork":
                source = recipe_of(self._server, self._load, self._pems)
                prepare(context)
            if self._places is not None:
                self._places.index = worker.index  # in the new process
            core = core_of(worker.index, self._crew.count)
            shared = self._places, self._numbers
            worker.start(context, work, source, self._load, self._hooks, *shared, core)
        finally:
            if chosen is None:  # `multiprocessing` takes a spawn for a choice
                multiprocessing.set_start_method(None, force=True)

    def _leave(self) -> Stop:
        """The order to finish: clients get `drain_timeout` to leave, and again to be drained."""
        seconds = self._server._options.drain_timeout
        return Stop(seconds, seconds)

    def _read(self) -> None:
        self._emit(events.ReloadBegun())
        self._reloads.ask()

    def _read_files(self) -> None:
        """Reload the server's settings, which new workers get. In a thread: files may block."""
        try:
            with failures() as failed:
                self._server.reload()
            self._announcer.failed = "; ".join(failed)
            self._keep_files()
        finally:
            self._order(self._end_reading)

    def _end_reading(self) -> None:
        self._reloads.join(GRACE)  # so that this process has one thread, and may fork
        self._crew.files_are_read()

    def _keep_files(self) -> None:
        """Read the files of TLS for spawned workers, which may start when the files are invalid."""
        with contextlib.suppress(OSError, ValueError):  # the former ones stay
            self._pems = pems_in_memory(self._server._options)

    def _emit(self, event: events.Event) -> None:
        events.emit(event, self._server)

    # The end

    def _lose(self, worker: Worker) -> None:
        if self._places is not None:
            self._places.reclaim(worker.index)
        if self.stopping:  # else its clients had left before the stop that is reported
            self._report = StopReport(*map(operator.add, self._report, worker.report))
        self._crew.lost(worker)

    def _stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        seconds = self._server._options.drain_timeout if timeout is None else timeout
        self._stop_seconds = patience + seconds
        begins = not self._crew.stopping
        self._crew.stopping = True  # first: `server_close` asks for it
        if begins:
            self._server.server_close()  # the parent's copies of the listeners
            if self._crew.workers:
                self._emit(events.WorkersStopping(len(self._crew.workers), seconds))
        self._crew.stop(Stop(seconds, patience))
