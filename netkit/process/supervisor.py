"""Several worker processes on the same listeners, and the parent that starts and replaces them.

Why processes: with the GIL, the threads of one process run Python one at a time, and many busy ones
hinder each other. Without it (free-threaded builds) one process uses all cores.

Rules:

1. The parent opens the listeners, so that the clients in their queues outlive any worker. It
   accepts no client, and starts no thread, so that it may fork.
2. It waits in one place, for its workers, for signals and for orders; nothing polls.
3. A worker that ends without an order is replaced: at once if it had served for a while, else after
   a pause that doubles. If no worker ever serves, the parent gives up.
4. A reload starts the new workers first. Only when all of them are ready do the old ones stop
   accepting; they go on serving their clients. If a new one fails, the old ones stay.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ..core import events
from ..core.backoff import BackOff
from ..core.cores import MAX_WORKERS, check_workers
from ..core.deadline import Deadline, wait_time
from ..core.errors import ServerStateError, WorkersFailedError
from ..core.kinds import check_seconds
from ..core.options import Options
from ..core.text import printable
from ..net.forks import check_main, do_not_undo, undo_in_children
from ..server.life import State
from ..server.log_config import status_lines
from ..server.registry import StopReport
from ..server.reload import pems_in_memory
from ..server.server import Server
from ..server.serving import no_handler
from ..server.threads import check_threads
from .channel import Stop
from .numbering import SharedNumbers
from .recipe import PARENTS_SIGNALS, Load, cores_of, ingredients
from .semaphore import SharedPlaces, check_places, shared_places
from .signals import NEWS, Mailbox, RunReport, StopSignals, despite_signals, stops_writers
from .worker import Worker

STEADY_SECONDS = 5.0  # a worker that has served for so long was no failure
FIRST_PAUSE = 0.1  # seconds before a worker that failed at once is replaced; doubles
LONGEST_PAUSE = 5.0
RECOUNT_SECONDS = 1.0  # until places are counted anew, if other workers were busy with them
MAX_FAILURES = 8  # rounds of failing workers, if none ever served, until the parent gives up


class Workers:
    """`count` processes that serve what `server` is bound to. ``netkit.run(server, workers=4)``.

    `run` serves; `resize`, `reload` and `stop` may be called meanwhile, from any thread. In the
    main thread, signals do the same: SIGTTIN and SIGTTOU for one more or less, SIGHUP to reload,
    SIGINT and SIGTERM to stop.

    `load`, if it is given, is called in each worker and returns its handler: the parent itself then
    never imports it. Else the workers have the handler of `server`.

    How processes are started: forked, where that is safe (Linux, and no other thread in this
    process), else spawned; or as `multiprocessing.set_start_method` says. A spawned worker imports
    the main module anew, so that a script must start its server under
    ``if __name__ == "__main__"``, and makes the server anew: the handler must be a function or
    class at the top of a module. So it is with a reload, unless there is a `load`.
    """

    def __init__(self, server: Server, count: int | str = "auto", load: Load | None = None) -> None:
        """TypeError or ValueError for an invalid count, or a limit that cannot be shared."""
        check_places(server._options.max_connections)
        self._server = server
        self._load = load
        self._orders: deque[tuple[Any, ...]] = deque()  # from other threads; append is atomic
        self._terminal_lost: Callable[[], bool] = lambda: False
        self._mailbox: Mailbox | None = None
        self._count = check_workers(count)
        self._workers: list[Worker] = []
        self._generation = 0
        self._reloading = False
        self._reload_again = False
        self._reload_patience = Deadline(None)
        self._announced = 0  # how many workers the last `WorkersReady` told of
        self._round = 0  # of starting workers
        self._failed_round = 0  # the last one that had a failure
        self._failures = 0
        self._proven = False  # a worker has been ready
        self._not_before = Deadline(0)  # the next round
        self._back_off = BackOff(FIRST_PAUSE, LONGEST_PAUSE)
        self.stopping = False
        """Whether all of them are to end, or have ended."""
        self._thread: int | None = None  # the one that runs
        self._ended = threading.Event()
        self._why_failed: str | None = None
        self._finished = self._cut = 0
        self._places: SharedPlaces | None = None  # if there is a limit
        self._numbers: SharedNumbers | None = None
        self._pems: dict[str, Any] = {}  # the last good files of TLS, for those that are spawned

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of the processes, including those that only finish with their clients."""
        return tuple(worker.pid for worker in tuple(self._workers))

    def resize(self, count: int | str) -> None:
        """Have `count` workers from now on. Those above it finish with their clients, and end.

        TypeError or ValueError for an invalid count.
        """
        self._order(self._resize, check_workers(count))

    def reload(self) -> None:
        """Replace all by new ones, which have the handler's present code."""
        self._order(self._begin_reload)

    def stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        """End `run` gracefully, as `Server.stop` does; returns at once.

        The methods of the `Server` that stop it do so, too, and wait for the end.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        check_seconds("patience", patience)
        self._order(self._stop, timeout, patience)

    def outcome(self) -> StopReport:
        """The report on the clients. Waits for the end of `run`, except in the thread of `run`."""
        if threading.get_ident() != self._thread:
            self._ended.wait()
        return StopReport(self._finished, self._cut)

    def _order(self, *order: Any) -> None:
        self._orders.append(order)
        mailbox = self._mailbox
        if mailbox is not None:
            mailbox.post(NEWS)

    # The parent's life

    def run(self, drain_timeout: float | None = None) -> RunReport:
        """Serve until a signal or `stop`, and report what became of all the clients.

        `drain_timeout`: as for `netkit.run`. WorkersFailedError if no worker can be brought to
        serve; ServerStateError if the server is not bound, or closed. Off the main thread there
        are no signals, and `stop` is the way to end it.
        """
        with status_lines():
            if threading.current_thread() is threading.main_thread():
                with StopSignals() as signals:
                    return self.supervise(signals, drain_timeout)
            events.emit(events.SignalsUnavailable(), self._server)
            with contextlib.closing(Mailbox()) as mailbox:
                return self._supervise(mailbox, drain_timeout)

    def supervise(self, signals: StopSignals, drain_timeout: float | None = None) -> RunReport:
        """As `run`, where the stop signals are being caught already; main thread only."""
        self._terminal_lost = signals.terminal_lost
        signals.catch(*PARENTS_SIGNALS)
        if not callable(signal.getsignal(signal.SIGCHLD)):  # else the program's own wakes us, too
            signals.disregard(signal.SIGCHLD)
        return self._supervise(signals.mailbox, drain_timeout)

    def _supervise(self, mailbox: Mailbox, drain_timeout: float | None) -> RunReport:
        self._check_server()
        options = self._server._options
        try:
            undo_in_children(self._workers.clear)  # which are not the children of a child
            if drain_timeout is not None:  # also for workers that a signal stops directly
                self._server._options = options.changed(drain_timeout=drain_timeout)
            self._keep_files()
            self._mailbox = mailbox
            mailbox.post(NEWS)  # there may be orders from before
            self._thread, self._server._drain.workers = threading.get_ident(), self
            if self._server._accept_loop.stop_requested:  # `serve_forever` would end at once
                self._stop(*self._server._drain.order)
            if options.max_connections is not None:
                self._places = shared_places(options.max_connections)
            with contextlib.suppress(OSError):  # then each worker numbers its own connections
                self._numbers = SharedNumbers()
            interrupted = self._live(mailbox)
        finally:
            despite_signals(lambda: self._clean_up(options))
        if self._why_failed is not None:
            raise WorkersFailedError(printable(self._why_failed))
        events.emit(events.Stopped(self._finished, self._cut), self._server)
        return RunReport(self._finished, self._cut, interrupted)

    def _clean_up(self, options: Options) -> None:
        """Leave nothing behind, whatever has ended it. May be called again."""
        for worker in tuple(self._workers):
            worker.kill()
            worker.ended()
            self._workers.remove(worker)
        do_not_undo(self._workers.clear)
        self._mailbox = None
        self.stopping = True
        self._server.server_close()
        self._server._options = options
        self._server._drain.report = StopReport(self._finished, self._cut)
        self._server._drain.workers = None
        self._ended.set()
        if self._places is not None:
            self._places.close()
            self._places = None
        if self._numbers is not None:
            self._numbers.close()

    def _check_server(self) -> None:
        server, state = self._server, self._server._life.state
        if state is not State.LISTENING:
            raise ServerStateError(f"the server is {state.value}; call listen() first")
        if server._listeners.exclusive:
            raise ServerStateError("the server listens exclusively: workers cannot share it")
        if self._load is None and server._handler_class is no_handler:
            raise ServerStateError("the server has no handler, which workers would need")
        if server._accept_loop.under_way:
            raise ServerStateError("the server is serving already: no workers can take its place")
        check_main()
        check_threads()
        check_places(server._options.max_connections)  # it may have been changed

    def _live(self, mailbox: Mailbox) -> bool:
        """Wait until all have ended. Whether a Ctrl+C came while they were ending."""
        from multiprocessing.connection import wait

        interrupted = False
        while self._workers or not self.stopping:
            wait([mailbox.fileno(), *self._descriptors()], wait_time(self._patience()))
            ended = [worker for worker in self._workers if self._has_ended(worker)]
            # Then the mailbox: what has ended a worker may have been a signal for all of us.
            for signum in mailbox.rest():
                if signum == signal.SIGINT and self.stopping:
                    interrupted = True
                self._obey(signum)
            for worker in ended:
                self._miss(worker)
            if self._places is not None:
                self._places.recount()
            self._end_reload()
            self._fill()
        # The last workers may have been faster than our own Ctrl+C.
        return interrupted or signal.SIGINT in mailbox.rest()

    def _descriptors(self) -> Iterable[Any]:
        for worker in self._workers:
            yield worker.end
            if not worker.channel.closed:
                yield worker.channel

    def _patience(self) -> float | None:
        """Seconds until there is something to do without an event; None if there never is."""
        wake = Deadline(None)
        for worker in self._workers:
            wake = wake.earlier(worker.kill_at)
        if not self.stopping and len(self._current()) < self._wanted():
            wake = wake.earlier(self._not_before)
        if self._places is not None and self._places.uncertain:
            wake = wake.earlier(Deadline(RECOUNT_SECONDS))
        return wake.remaining()

    def _obey(self, signum: int) -> None:
        while self._orders:
            method, *arguments = self._orders.popleft()
            method(*arguments)
        if signum == signal.SIGINT:
            self._stop(0 if self.stopping else None)
        elif signum == signal.SIGTERM or (signum == signal.SIGHUP and self._terminal_lost()):
            self._stop()
        elif signum == signal.SIGHUP:
            self._begin_reload()
        elif signum == signal.SIGTTIN:
            self._resize(min(self._count + 1, MAX_WORKERS))
        elif signum == signal.SIGTTOU and not stops_writers():
            self._resize(max(self._count - 1, 1))

    # Workers that come and go

    def _current(self) -> list[Worker]:
        return [w for w in self._workers if w.generation == self._generation and not w.leaving]

    def _wanted(self) -> int:
        """How many of this generation there should be: one until the first of all is ready."""
        return self._count if self._generation or self._proven else 1

    def _fill(self) -> None:
        """Start the workers that are missing, unless it is too early after a failure."""
        missing = self._wanted() - len(self._current())
        if missing <= 0 or self.stopping or not self._not_before.expired():
            return
        self._round += 1
        for _ in range(missing):
            try:
                self._start()
            except Exception as error:
                # Not the machine, nor a forkserver that a signal has ended, but what is pickled.
                hopeless = not isinstance(error, (OSError, EOFError))
                self._failed(f"{type(error).__name__}: {error}", self._round, hopeless)
                return

    def _start(self) -> None:
        import multiprocessing

        chosen = multiprocessing.get_start_method(allow_none=True)
        # A copy of this process would have the code that it has.
        anew = self._generation > 0 and self._load is None
        taken = {worker.index for worker in self._workers}
        worker = Worker(self._generation, min(set(range(len(taken) + 1)) - taken))
        worker.round = self._round
        self._workers.append(worker)  # first, so that it is killed, whatever ends us
        try:
            context, source = ingredients(self._server, chosen, self._load, anew, self._pems)
            shared = (self._places, self._numbers, cores_of(self._count))
            worker.start(context, source, self._load, *shared)
        except Exception:
            self._workers.remove(worker)
            worker.kill()
            worker.ended()
            raise
        finally:
            if chosen is None:  # the program has not chosen; a spawn makes it so that it has
                multiprocessing.set_start_method(None, force=True)

    def _has_ended(self, worker: Worker) -> bool:
        if worker.kill_at.expired():
            worker.kill()
        worker.listen()
        self._proven = self._proven or worker.ready
        return worker.ended()

    def _miss(self, worker: Worker) -> None:
        self._workers.remove(worker)
        if self._places is not None:
            self._places.reclaim(worker.index)
        if self.stopping:  # else its clients had left before the stop that is reported
            self._finished += worker.report.finished
            self._cut += worker.report.cut
        if worker.leaving:
            return
        reason = worker.failure or f"worker {worker.pid} ended with status {worker.status}"
        hopeless = (worker.status or 0) >= 0 and not worker.ready  # nobody has killed it
        self._failed(reason, worker.round, hopeless, worker)

    def _failed(
        self, reason: str, round_: int, hopeless: bool, worker: Worker | None = None
    ) -> None:
        """Note a worker that could not be started, or has ended without an order."""
        steady = worker is not None and worker.ready and worker.age >= STEADY_SECONDS
        new = worker is None or worker.generation == self._generation
        if self._reloading and (new or not any(other.ready for other in self._workers)):
            return self._abandon_reload(reason)
        pause = 0.0
        if steady:
            self._failures = 0
            self._back_off.succeeded()
        else:
            if round_ > self._failed_round:  # all that fail together count once
                self._failed_round = self._round
                self._failures += 1
                self._back_off.failed()
            if self._failures > 1 or worker is None:
                pause = self._back_off.pause
        self._not_before = Deadline(pause)
        if self._should_give_up(hopeless):
            self._why_failed = reason
            return self._stop()
        if worker is None or worker.failure is not None:
            events.emit(events.WorkerFailed(reason, pause), self._server)
        else:
            events.emit(events.WorkerEnded(worker.pid, worker.status, pause), self._server)
        return None

    def _should_give_up(self, hopeless: bool) -> bool:
        # Once one has served, a client that can crash it is not to end the server.
        return not self._proven and (hopeless or self._failures >= MAX_FAILURES)

    def _resize(self, count: int) -> None:
        self._count = count
        for worker in self._current()[count:]:
            worker.tell(self._leave())

    def _leave(self) -> Stop:
        """The order to finish: clients get `drain_timeout` to leave, and again to be drained."""
        seconds = self._server._options.drain_timeout
        return Stop(seconds, seconds)

    def _begin_reload(self) -> None:
        if self.stopping:
            return
        if self._reloading:
            self._reload_again = True  # some may have loaded older code already
            if self._reload_patience.expired():  # no worker that hangs delays it further
                self._abandon_reload("its workers are not ready yet, and it is asked for anew")
            return
        self._reloading = True
        self._reload_again = False
        self._reload_patience = Deadline(STEADY_SECONDS)
        self._generation += 1
        self._server.reload()  # the new workers get its settings
        self._keep_files()

    def _keep_files(self) -> None:
        """Read the files of TLS for spawned workers, which may start when the files are invalid."""
        with contextlib.suppress(OSError, ValueError):  # then those from before stay
            self._pems = pems_in_memory(self._server._options)

    def _end_reload(self) -> None:
        """Once all new workers are ready, the old ones may leave."""
        current = self._current()
        if self.stopping or len(current) < self._count or not all(w.ready for w in current):
            return
        if self._reloading:
            self._reloading = False
            for worker in self._workers:
                if worker.generation < self._generation and not worker.leaving:
                    worker.tell(self._leave())
            events.emit(events.Reloaded(len(current)), self._server)
            if self._reload_again:
                self._begin_reload()
        elif self._announced != len(current):
            events.emit(events.WorkersReady(len(current)), self._server)
        self._announced = len(current)

    def _abandon_reload(self, reason: str) -> None:
        for worker in self._current():
            worker.tell(self._leave())
        self._reloading = False
        self._generation = max(
            (worker.generation for worker in self._workers if not worker.leaving), default=0
        )
        self._resize(self._count)  # which may have changed meanwhile
        events.emit(events.ReloadFailed(reason), self._server)
        if self._reload_again:
            self._begin_reload()

    # Stopping

    def _stop(self, timeout: float | None = None, patience: float = 0.0) -> None:
        seconds = self._server._options.drain_timeout if timeout is None else timeout
        if not self.stopping:
            self.stopping = True
            self._server.server_close()  # our copies of the listeners
            if self._workers:
                events.emit(events.WorkersStopping(len(self._workers), seconds), self._server)
        for worker in self._workers:
            worker.tell(Stop(seconds, patience))
