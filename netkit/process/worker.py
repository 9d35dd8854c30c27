"""One worker process, as its parent sees it, and how it is started safely.

The parent sends orders. The worker reports that it is ready, or why it cannot serve, and at its end
how many clients it has served (`netkit.process.channel`). Each of the two sees the end of input
once the other one has ended in any way. The parent kills a worker that is late:

| state of the worker                         | is killed after                                   |
|---------------------------------------------|---------------------------------------------------|
| starting                                    | `READY_SECONDS`                                   |
| starting, and told to stop                  | `KILL_GRACE`, since it has no clients             |
| ready                                       | never                                             |
| ready, and told to stop                     | the time of the strictest order, and `KILL_GRACE` |
| has reported its end, or closed its channel | `KILL_GRACE`                                      |
| has sent an invalid message                 | no time                                           |
| has been asked whether it accepts clients   | the seconds that it was given to answer           |
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..core.deadline import Deadline
from ..net.forks import do_not_undo, undo_in_children
from ..server.drain import CUT_GRACE
from ..server.registry import StopReport
from .channel import Alive, Ask, Channel, Failed, Loaded, News, Ready, Stop, channel_pair
from .signals import REPORTS, REQUESTS, StopSignals

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# Seconds that a worker gets to end by itself, from the moment when its clients are cut: the threads
# of those get `CUT_GRACE`, and all must be over before a supervisor of the parent loses patience
# (docker stop: 10 seconds).
KILL_GRACE = 1.9 * CUT_GRACE
READY_SECONDS = 300.0  # for loading a handler: models may be large

# A parent catches these and passes them on as orders. All of them may come to the whole process
# group, from a terminal, and a worker must not obey them itself.
PARENTS_SIGNALS = tuple(it for it in REQUESTS if it not in (*StopSignals.SIGNALS, *REPORTS))


class Worker:
    """A worker process. For one thread. Holds descriptors from `start` until its end."""

    channel: Channel
    """The parent's end, from `start` on."""
    end: Any
    """Becomes readable at the end of the process (`multiprocessing.connection.wait`)."""

    def __init__(self, generation: int, index: int, round_: int = 0) -> None:
        """`index` is the least number that no other worker has.

        Workers that are started together have the same `round_`.
        """
        self.generation = generation
        self.index = index
        self.round = round_
        self.started_at = time.monotonic()
        self.loaded: Loaded | None = None
        """The options of the application, once the worker has loaded it."""
        self.is_known = False
        """Whether the parent has adopted these options."""
        self.ready = False
        self.told: Stop | None = None
        """The strictest of the orders to stop."""
        self.failure: str | None = None
        """Why the worker cannot serve; None if it can."""
        self.connections = 0
        """How many are open, as of the last answer to `ask`."""
        self.report = StopReport(0, 0)
        self.status: int | None = 0
        """The exit status, once it has ended, negative for a signal; None if it is lost."""
        self.pid = 0
        self._process: Any = None  # that of `multiprocessing`, until it has ended
        self._pidfd: int | None = None
        self._kill_unready_at, self._kill_ready_at = Deadline(READY_SECONDS), Deadline(None)
        self._is_asked = False  # and has not answered
        self._answer_by, self._answer_seconds = Deadline(None), 0.0

    def start(self, context: BaseContext, target: Callable[..., None], *arguments: Any) -> None:
        """Start a process that calls ``target(channel, *arguments)`` with its end of the channel.

        OSError if the system cannot start it, and what pickling raises. Call `kill` and `check`
        after any exception.
        """
        self.channel, self._theirs = channel_pair()
        self._process = context.Process(  # type: ignore[attr-defined] # not in typeshed
            target=target, args=(self._theirs, *arguments), name="netkit-worker"
        )
        # A child with a copy of the parent's end would not see that the parent has ended.
        undo_in_children(self.channel.close)
        method = context.get_start_method()
        _start(self._process, method)
        self._theirs.close()
        self.pid, self.end = self._process.pid, self._process.sentinel
        # The sentinel of `multiprocessing` is readable only once all processes that the worker has
        # forked have ended, too. A forkserver's worker has a better one, and is no child of ours.
        if hasattr(os, "pidfd_open") and method != "forkserver":
            with contextlib.suppress(OSError):
                self.end = self._pidfd = os.pidfd_open(self.pid)

    @property
    def leaving(self) -> bool:
        return self.told is not None

    @property
    def kill_at(self) -> Deadline:
        """When the worker is late: see the table of this module."""
        due = self._kill_ready_at if self.ready else self._kill_unready_at
        return due.earlier(self._answer_by)

    def ask(self, seconds: float | None) -> None:
        """Ask whether the worker accepts clients, and kill it if it does not answer in `seconds`.

        A worker that is to stop has its own limits, and may be asked without one (None), too. Does
        nothing if the worker is not ready, or has not answered the last question.
        """
        if self._is_asked or not self.ready or self.channel.closed:
            return
        self._is_asked = True
        if seconds is not None and not self.leaving:
            self._answer_by, self._answer_seconds = Deadline(seconds), seconds
        self.channel.allow()
        with contextlib.suppress(OSError):  # it hangs, or is gone
            self.channel.send(Ask())

    def tell(self, order: Stop) -> None:
        """Order the worker to stop, and give it time to do so. Does nothing if the worker is gone.

        An order that is not stricter than those before is not sent: a worker that hangs reads no
        order, so its channel would be full one day.
        """
        self._allow(sum(order) + KILL_GRACE + (self.loaded.hook_seconds if self.loaded else 0))
        strictest = order if self.told is None else Stop(*map(min, order, self.told))
        if strictest != self.told:
            self.told = strictest
            with contextlib.suppress(OSError):
                self.channel.send(order)

    def _allow(self, seconds: float) -> None:
        self._kill_ready_at = self._kill_ready_at.earlier(Deadline(seconds))
        self._kill_unready_at = self._kill_unready_at.earlier(Deadline(min(seconds, KILL_GRACE)))

    def check(self) -> bool:
        """Note what has happened to the worker, and return whether it has ended.

        Never waits, unless the worker must be killed. At the end of the worker, its last messages
        have been read, and its descriptors in this process are closed.
        """
        if self.kill_at.expired():
            self.kill()
        if self._process is not None:
            self.listen()
            if self._process.pid is not None:
                if not self._has_ended():
                    return False
                self.status = self._process.exitcode
                self.listen()
            self._release()
        return True

    def kill(self) -> None:
        """Kill the process, and wait for its end, unless it has ended or was never started."""
        if self._process is None or self._process.pid is None:
            return
        if self._answer_by.expired():
            self.failure = f"worker {self.pid} has hung for {self._answer_seconds:g} seconds"
        elif not (self.ready or self.leaving or self.failure or self.channel.closed):
            self.failure = f"not ready after {READY_SECONDS:g} seconds"
        self._process.kill()
        self._process.join()

    def listen(self) -> None:
        """Read the messages that have come. Never waits."""
        try:
            while not self.channel.closed:
                for news in self.channel.receive(Loaded, Ready, Failed, Alive, StopReport):
                    self._take_in(news)
        except BlockingIOError:
            return
        except (EOFError, OSError):  # it is to end, or has executed another program
            self.channel.close()
            self._allow(KILL_GRACE)
        except ValueError as error:
            self.failure = f"worker {self.pid} has sent {error}"
            self.channel.close()
            self._allow(0)

    def _take_in(self, news: News) -> None:
        if isinstance(news, Ready):
            self.ready = True
            return
        if isinstance(news, Loaded):
            self.loaded = news
            return
        if isinstance(news, Alive):
            self.connections = news.connections
            self._is_asked, self._answer_by = False, Deadline(None)
            return
        if isinstance(news, Failed):
            self.failure = news.reason
        else:
            self.report = news
        self._allow(KILL_GRACE)

    def _has_ended(self) -> bool:
        from multiprocessing.connection import wait

        if self._process.exitcode is not None:
            return True
        if not wait([self.end], 0):
            return False
        try:  # SIGCHLD may be ignored, or other code may have got the status
            os.kill(self.pid, 0)
        except OSError:  # no process has this number, or by now that of another user
            return True
        return False

    def _release(self) -> None:
        """Close the parent's descriptors. Idempotent, since a signal handler may interrupt this."""
        do_not_undo(self.channel.close)
        self.channel.close()
        self._theirs.close()
        if self._pidfd is not None:
            pidfd, self._pidfd = self._pidfd, None
            os.close(pidfd)
        process, self._process = self._process, None
        with contextlib.suppress(ValueError):  # its status is lost, so it seems to run
            process.close()


# How a process is started


def context_of(fresh: bool) -> BaseContext:
    """Return how `multiprocessing` is to start a process.

    That is as the program has chosen (`multiprocessing.set_start_method`). Without a choice, the
    process is forked where that is safe: on Linux, while the kernel counts one thread. With
    `fresh`, it must not be a copy of this one, and is spawned.
    """
    import multiprocessing

    method = multiprocessing.get_start_method(allow_none=True)
    if method is None:
        method = "fork" if sys.platform == "linux" and has_one_thread() else "spawn"
    return multiprocessing.get_context("spawn" if fresh else method)


def has_one_thread() -> bool:
    """Whether the kernel counts one thread of this process, those of libraries included (proc(5)).

    False if the threads cannot be counted.
    """
    # The kernel may count a thread for a moment longer than Python.
    pauses = (0.0, 0.001, 0.01, 0.1) if threading.active_count() == 1 else (0.0,)
    with contextlib.suppress(OSError):  # /proc is missing, or no descriptor is left
        for pause in pauses:
            time.sleep(pause)
            if len(os.listdir("/proc/self/task")) == 1:
                return True
    return False


def prepare(context: BaseContext) -> None:
    """Start the helpers of `multiprocessing` for processes that are not forked.

    Otherwise they start with the first process, when signals are blocked. The resource tracker lets
    signals in when it starts, and may end by them; a forkserver keeps them blocked in its children.
    """
    from multiprocessing import resource_tracker

    with _signals_held_back():
        resource_tracker.ensure_running()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _start(process: Any, method: str) -> None:
    before = _pipes() if method == "fork" else set()
    try:
        with _signals_held_back():
            process.start()
    except OSError:
        if method == "fork" and has_one_thread():  # which has opened no other pipe meanwhile
            for descriptor in _pipes() - before:  # `multiprocessing` has left them open
                os.close(descriptor)
        raise


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block the signals that a worker handles. A process that starts meanwhile inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pipes() -> set[int]:
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the list's own
            if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found
