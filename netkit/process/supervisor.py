"""Several worker processes on the same listeners, and the parent that starts and replaces them.

Rules:

1. The parent opens the listeners, so that the clients in their queues outlive any worker. It
   accepts no client, and starts no thread but for a reload, so that it may fork.
2. It waits in one place, for its workers, for signals and for orders. It does not poll.
3. `netkit.process.crew` decides which workers there are to be.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core import events
from ..core.cores import MAX_WORKERS, check_workers
from ..core.deadline import Deadline, wait_time
from ..core.errors import WorkersFailedError
from ..core.kinds import check_seconds
from ..core.text import printable
from ..net.forks import check_main, do_not_undo, undo_in_children
from ..server.log_config import status_lines
from ..server.registry import StopReport
from ..server.reload import configure
from ..server.server import Server
from .application import learn
from .channel import Stop
from .crew import Crew, Pace
from .ending import Ending
from .errand import Errand
from .hooks import Hook, Hooks
from .launch import Launch
from .operators import Operators
from .orders import REOPEN
from .progress import Progress
from .reloading import GRACE, failures, reload
from .service import RunReport
from .shared import check_places
from .signals import Mailbox, Request, StopSignals, despite_signals
from .supervised import Notices, SupervisedCrew, notices_of
from .worker import PARENTS_SIGNALS, Worker

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
        self._launch = Launch(server, load, Hooks(on_start, on_stop), attachment)
        server._listeners.is_silent = load is not None
        self._attachment = attachment
        self._operators = Operators(
            attachment, self._launch.start_front, self._obey_operator, self._emit
        )
        self._orders: deque[Callable[[], object]] = deque()  # thread-safe, and without a lock
        self._mailbox: Mailbox | None = None
        self._reloads = Errand("reload", self._read_files, server)
        self._progress = Progress(server, self._emit)
        self._crew = Crew(
            check_workers(count),
            self._start,
            self._leave,
            self._begin_reading,
            self._progress.note,
            Pace(),
        )
        self._thread: int | None = None  # the one that runs
        self._ended = threading.Event()
        self._ending = Ending(server, self._crew, self._emit)

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
        for name, seconds in (("timeout", timeout), ("patience", patience), ("delay", delay)):
            if seconds is not None:
                check_seconds(name, seconds)
        self._order(lambda: self._ending.later(delay, timeout, patience))

    def outcome(self) -> StopReport:
        """The report on the clients. Waits for the end of `run`, except in the thread of `run`."""
        if threading.get_ident() != self._thread:
            self._ended.wait()
        return self._ending.report

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
                attachment = self._attachment
                survives = attachment is not None and attachment.survives_terminal
                with StopSignals(survives_terminal=survives) as signals:
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
        options = self._server._options
        configured = {"drain_timeout": options.drain_timeout, "stop_delay": options.stop_delay}
        try:
            undo_in_children(self._crew.workers.clear)  # a forked child has no workers
            if drain_timeout is not None:  # also for workers that a signal stops directly
                configure(self._server._configuration, {"drain_timeout": drain_timeout})
            self._begin(mailbox)
            program = SupervisedCrew(self._crew, mailbox, self._phase, self._ending.seconds)
            with notices_of(self._attachment, program) as notices:
                interrupted = self._live(mailbox, notices)
                notices.stopped(self._ending.report)
        finally:
            despite_signals(lambda: self._clean_up(configured))
        if self._crew.why_failed is not None:
            error = WorkersFailedError(printable(self._crew.why_failed))
            error.exit_status = self._crew.exit_status
            raise error
        report = self._ending.report
        self._emit(events.Stopped(*report))
        return RunReport(*report, interrupted)

    def _begin(self, mailbox: Mailbox) -> None:
        server = self._server
        self._mailbox = mailbox
        mailbox.post(Request.LOOK)  # there may be orders from before
        self._thread = threading.get_ident()
        order = server._drain.delegate(self)
        if order is not None:
            self._ending.stop(*order[:2])
        self._launch.open()

    def _clean_up(self, configured: dict[str, Any]) -> None:
        """Leave nothing behind, whatever has ended it. Idempotent."""
        workers = self._crew.workers
        for worker in tuple(workers):
            worker.kill()
            worker.check()
            workers.remove(worker)
        self._operators.kill()
        do_not_undo(workers.clear)
        self._mailbox = None
        self._crew.stopping = True
        self._server.server_close()
        configure(self._server._configuration, configured)
        self._server._drain.end_delegation(self._ending.report)
        self._ended.set()
        self._launch.close()

    def _live(self, mailbox: Mailbox, notices: Notices) -> bool:
        """Wait until all have ended. Return whether a Ctrl+C came while they were ending."""
        from multiprocessing.connection import wait

        crew, interrupted = self._crew, False
        while crew.workers or not crew.stopping or not self._operators.has_ended:
            descriptors = *crew.descriptors(), *self._operators.descriptors()
            seconds = self._due().earlier(notices.due()).remaining()
            wait([mailbox.fileno(), *descriptors], wait_time(seconds))
            ended = crew.check()
            learn(crew.workers, self._server)
            # Requests come second: a signal to all processes may have ended the workers.
            for request in mailbox.rest():
                interrupted |= request is Request.INTERRUPT and crew.stopping
                self._obey(request)
            for worker in ended:
                self._launch.reclaim(worker)
                self._ending.lost(worker)
            self._step()
            notices.step()
        # The last workers may have ended by a Ctrl+C that this process has not seen yet.
        return interrupted or Request.INTERRUPT in mailbox.rest()

    def _due(self) -> Deadline:
        """When `_live` goes on even if nothing happens."""
        due = self._crew.next_step().earlier(self._operators.next_step())
        return due.earlier(self._ending.due())

    def _step(self) -> None:
        """Do what is due at the end of each pass of `_live`."""
        crew, operators = self._crew, self._operators
        operators.introduce(crew.workers)
        crew.step()
        self._ending.step()
        operators.step(crew.workers, lambda: self._progress.state(crew, self._phase()))
        if self.stopping and not crew.workers:
            operators.end()

    def _phase(self) -> str:
        """As `ProgramState.phase`."""
        if self._ending.is_announced:
            return "stopping"
        if self._operators.is_suspended:
            return "suspended"
        return "ready" if self._progress.is_ready(self._crew) else "starting"

    def _obey(self, request: Request) -> None:
        while self._orders:
            self._orders.popleft()()
        crew = self._crew
        if request is Request.STOP:
            self._ending.later(self._server._options.stop_delay)
        elif request is Request.REPORT:
            self._operators.report()
        elif request is Request.INTERRUPT:
            self._ending.stop(0 if crew.stopping else None)
        elif request is Request.RELOAD:
            crew.begin_reload()
        elif request is Request.MORE:
            crew.resize(min(crew.count + 1, MAX_WORKERS))
        elif request is Request.FEWER:
            crew.resize(max(crew.count - 1, 1))

    # The methods that the crew calls

    def _start(self, worker: Worker) -> None:
        self._launch.start(worker, self._crew.count, self._operators.standing())

    def _leave(self) -> Stop:
        """The order to finish: clients get `drain_timeout` to leave, and again to be drained."""
        seconds = self._server._options.drain_timeout
        return Stop(seconds, seconds)

    def _begin_reading(self) -> None:
        self._progress.begin_reload()
        self._operators.tell(REOPEN)  # the old workers, which go on for a while
        self._reloads.ask()

    def _read_files(self) -> None:
        """Reload the server's settings, which new workers get. In a thread: files may block."""
        try:
            with failures() as failed:
                reload(self._server)
                self._launch.keep_files()
        finally:
            self._progress.failures = failed
            self._order(self._end_reading)

    def _end_reading(self) -> None:
        self._reloads.join(GRACE)  # so that this process has one thread, and may fork
        self._crew.files_are_read()

    def _emit(self, event: events.Event) -> None:
        events.emit(event, self._server)

    def _obey_operator(self, command: str, arguments: dict[str, Any]) -> None:
        """Carry out an order of `Program.order`, which is valid."""
        if command == "stop":
            self._ending.later(arguments.pop("delay", 0.0), **arguments)
        elif command == "reload":
            self._crew.begin_reload()
        elif command == "release":
            self._server._listeners.leave_files()
            if self._attachment is not None:  # pragma: no branch - it gives this order
                self._attachment.release()
        else:
            self.resize(**arguments)
