"""Ctrl+C and SIGTERM turned into a graceful stop.

Python runs its signal handlers between two instructions of the main thread, which makes them a
place for races: a signal that comes just before a wait is seen only after it. Here the Python
handler does nothing but put the signal's number into a queue, which the main thread waits for, and
the C handler ends that wait (`signal.set_wakeup_fd`). So nothing runs in the midst of something
else, and no moment is too early or too late.

What the C handler writes says only that there may be something in the queue. A process that is
forked may write it, too, until it executes another program (`subprocess`, with `user=`, forks
without the hooks of `netkit.net.forks`), and its signals are not this process's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from ..core import events
from ..net.forks import do_not_undo, undo_in_children
from ..net.waker import Waker
from ..server.registry import StopReport
from ..server.server import Server
from ..server.threads import join

NEWS = 0  # posted for any other reason than a signal; no signal has this number

# Windows has none of these.
_SIGHUP, _SIGTTIN, _SIGTTOU = (
    getattr(signal, name, None) for name in ("SIGHUP", "SIGTTIN", "SIGTTOU")
)
RELOAD_SECONDS = 1.0  # that a reload may go on after the server has stopped
_TRIES = 1000  # how often a signal handler may interrupt the same step by an exception

SignalHandler = Callable[[int, Any], Any] | int | None


class Mailbox:
    """A queue of numbers for one thread, posted by any other, or by a signal handler."""

    def __init__(self) -> None:
        self._numbers: deque[int] = deque()  # to append, and to take one, is one step
        self._waker = Waker()

    def post(self, number: int, frame: object = None) -> None:
        """Append a number; never waits. It may be the handler of a signal."""
        self._numbers.append(number)
        self._waker.wake()

    def take(self) -> int:
        """Wait for the next number."""
        while not self._numbers:
            self._waker.clear()
        return self._numbers.popleft()

    def rest(self) -> list[int]:
        """The numbers that are there, without a wait."""
        self._waker.wake()  # so that `clear` does not wait
        self._waker.clear()
        return [self._numbers.popleft() for _ in range(len(self._numbers))]

    def fileno(self) -> int:
        """The descriptor to wait for, in `select`, before `rest`."""
        return self._waker.fileno()

    def wakeup_fileno(self) -> int:
        """The descriptor for `signal.set_wakeup_fd`."""
        return self._waker.input_fileno()

    def close(self) -> None:
        """Give its descriptors back. Idempotent."""
        self._waker.close()


class StopSignals:
    """SIGINT and SIGTERM, caught while the ``with`` block runs; main thread only.

    They, SIGHUP if the program neither ignores (nohup(1)) nor handles it, and those given to
    `catch`, are posted to `mailbox`. `terminal_lost` says whether the terminal is gone that the
    process had at the start. At the end, or whenever a signal handler of the program raises an
    exception, the handlers that were there before are put back, or `afterwards` if it is given
    (``signal.SIG_IGN`` for a program that is about to exit with a status of its own). A process
    that is forked meanwhile has the handlers from before at once. ValueError off the main thread.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, afterwards: SignalHandler = None) -> None:
        self._afterwards = afterwards
        self._previous: dict[int, SignalHandler] = {}  # what each signal did before
        self._previous_fds: list[int] = []

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signals can only be handled in the main thread")
        try:
            self.mailbox = Mailbox()
            undo_in_children(self._put_back, self._previous)
            # By `map`, so that no signal handler can raise between the call and the note of it.
            set_fd = functools.partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
            self._previous_fds.extend(map(set_fd, [self.mailbox.wakeup_fileno()]))
            self.terminal_lost = _watch_terminal()
            self.catch(*self.SIGNALS)
            if _SIGHUP is not None and signal.getsignal(_SIGHUP) is signal.SIG_DFL:
                self.catch(_SIGHUP)  # before it serves, so that it does not end the program
            return self
        except BaseException:
            self.close()
            raise

    def catch(self, *signals: signal.Signals) -> None:
        """Have these posted, too."""
        for signum in signals:
            self._handle(signum, self.mailbox.post)

    def disregard(self, *signals: signal.Signals) -> None:
        """Let these do nothing but wake up the thread that waits for the mailbox.

        They are caught and not ignored, since a program that is executed would ignore them, too;
        all but SIGTTIN, if there is a terminal to send it. For each read in the background, it
        would send it to all processes of the group until one of them ignores it.
        """
        for signum in signals:
            self._handle(signum, _do_nothing)
        if _SIGTTIN in signals and _has_terminal():
            signal.signal(_SIGTTIN, signal.SIG_IGN)

    def _handle(self, signum: int, handler: Callable[[int, object], object]) -> None:
        self._previous.setdefault(signum, signal.getsignal(signum))  # before it is changed
        if signum == _SIGTTOU:
            handler = functools.partial(_pass_to_terminal, handler)
        signal.signal(signum, handler)

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it before the ``with`` block ends; idempotent."""
        despite_signals(lambda: self._put_back(self._afterwards))

    def _put_back(self, afterwards: SignalHandler = None) -> None:
        hook = sys.unraisablehook
        if not isinstance(hook, _UnlessLate):
            hook = sys.unraisablehook = _UnlessLate(hook)
        while self._previous:
            signum, after = next(reversed(self._previous.items()))
            if afterwards is not None and signum in self.SIGNALS:
                after = afterwards
            signal.signal(signum, signal.SIG_DFL if after is None else after)
            self._previous.pop(signum, None)
        if afterwards is None:  # else a late one may yet come, until the program exits
            sys.unraisablehook = hook.tell
        while self._previous_fds:
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(OSError, ValueError):  # it has been closed meanwhile
                signal.set_wakeup_fd(self._previous_fds[-1])
            self._previous_fds.clear()
        do_not_undo(self._put_back)
        if hasattr(self, "mailbox"):  # a signal handler may raise before it is made
            self.mailbox.close()

    def supervise(self, server: Server, drain_timeout: float | None = None) -> RunReport:
        """Serve until a signal comes or somebody stops the server; then drain, and report.

        The server runs in a thread of its own, and this one waits for signals: the first stops it
        gracefully, a SIGINT after it cuts the clients that are left. (A second SIGTERM does not:
        some supervisors send it twice.) SIGHUP calls `Server.reload`; but it stops the server, as
        SIGTERM does, if the terminal is gone on which the process was started. Raises what
        `serve_forever` raises, and what a signal handler of the program raises; the server is
        closed then.
        """
        service, reloads = _Service(server, drain_timeout, self.mailbox), _Reloads(server)
        try:
            # Though the program handles it, too; but not if it is to do nothing.
            if server.can_reload and _SIGHUP and signal.getsignal(_SIGHUP) is not _do_nothing:
                self.catch(_SIGHUP)
            service.start()
            interrupted = self._wait(server, service, reloads)
            reloads.finish()
            return RunReport(*service.result(), interrupted)
        except BaseException:
            despite_signals(service.abandon)
            raise
        finally:
            self.close()

    def _wait(self, server: Server, service: _Service, reloads: _Reloads) -> bool:
        """Wait until it has ended. Whether a SIGINT came after the stop had begun."""
        stopping = interrupted = False
        while not service.outcome:
            signum = self.mailbox.take()
            if signum == NEWS:
                continue
            if signum == _SIGHUP and not self.terminal_lost():
                reloads.ask()
            elif not stopping:
                stopping = True
                server.request_stop()
            elif signum == signal.SIGINT:
                interrupted = True
                server.close()
        return interrupted


class _Reloads:
    """Reloads a server in a thread of its own.

    A file may not open (a FIFO without a reader, a server of files that is down), and a setting's
    `reopen` may block. The thread that waits for signals must not wait for that.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()  # guards what follows
        self._asked = False  # since the last reload began
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Have a reload begin: now, or as soon as the present one has ended."""
        with self._lock:
            self._asked = True
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="netkit-reload", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there can be no further thread
            self._run()

    def _run(self) -> None:
        while self._next():
            try:
                if self._server.can_reload:
                    self._server.reload()
                else:
                    events.emit(events.NothingToReload(), self._server)
            except BaseException as error:  # of a subclass, or a setting's: others are logged there
                events.emit(events.HookFailed("reload", error), self._server)

    def _next(self) -> bool:
        """Whether there is a reload to begin; if not, the thread is done."""
        with self._lock:
            if not self._asked:
                self._thread = None
            asked, self._asked = self._asked, False
            return asked

    def finish(self) -> None:
        """Wait for the end of the present reload, for at most a second."""
        thread = self._thread
        if thread is not None:
            thread.join(RELOAD_SECONDS)


def _watch_terminal() -> Callable[[], bool]:
    """A function that says whether the terminal is gone that the process has now.

    The kernel sends SIGHUP when that happens (termios(3)). It is never gone for a process that
    ignores SIGHUP, as nohup(1) makes it, or that handles it in another way.
    """
    default = _SIGHUP is not None and signal.getsignal(_SIGHUP) is signal.SIG_DFL
    watched = default and _has_terminal()
    return lambda: watched and not _has_terminal()


class _Service:
    """A server that serves in a thread of its own, and is stopped there."""

    def __init__(self, server: Server, drain_timeout: float | None, mailbox: Mailbox) -> None:
        self._server = server
        self._drain_timeout = drain_timeout
        self._mailbox = mailbox
        self.outcome: list[StopReport | BaseException] = []
        self._thread = threading.Thread(target=self._run, name="netkit-serve", daemon=True)

    def start(self) -> None:
        """RuntimeError if there can be no thread."""
        self._server._accept_loop.expect()  # a signal handler may stop it before the thread runs
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.serve_forever()
            self.outcome.append(self._server.stop(self._drain_timeout))
        except BaseException as error:
            self.outcome.append(error)
        finally:
            self._mailbox.post(NEWS)

    def result(self) -> StopReport:
        """The report on its clients. Raises the exception that has ended it, if one has."""
        self._thread.join()
        if isinstance(self.outcome[0], BaseException):
            raise self.outcome[0]
        return self.outcome[0]

    def abandon(self) -> None:
        """Stop the server at once, at whatever moment of its life; idempotent."""
        self._drain_timeout = 0
        self._server.request_stop(0)  # which also ends a turn that is to begin
        join(self._thread, None)
        self._server.close()


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


class _UnlessLate:
    """A `sys.unraisablehook` that leaves out one report of Python's.

    It says that a signal came while its handler was taken away.
    """

    def __init__(self, tell: Callable[[Any], object]) -> None:
        self.tell = tell

    def __call__(self, unraisable: Any) -> None:
        if "ignored due to race condition" not in str(unraisable.exc_value):
            self.tell(unraisable)


def despite_signals(action: Callable[[], object]) -> None:
    """Have `action` come to its end, though signal handlers of the program raise exceptions.

    `action` is called again after each of them, so it must bear that. The last exception is raised
    at the end, or one that comes too often to be a signal handler's.
    """
    raised: BaseException | None = None
    for _ in range(_TRIES):
        try:
            action()
            break
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _do_nothing(signum: int, frame: object) -> None:
    """The handler of a signal that only wakes up."""


def _pass_to_terminal(handler: Callable[[int, object], object], signum: int, frame: object) -> None:
    """Handle SIGTTOU, which a terminal sends to a background process that writes to it.

    While it is caught, the kernel would interrupt the write for ever; once it is ignored, the write
    passes (termios(3)).
    """
    if stops_writers():
        signal.signal(signum, signal.SIG_IGN)
    handler(signum, frame)


def stops_writers() -> bool:
    """Whether this process is in the background of a terminal that stops background writers."""
    import termios  # not everywhere

    try:
        terminal = _open_terminal()
    except OSError:  # there is none
        return False
    try:
        behind = os.tcgetpgrp(terminal) != os.getpgrp()
        return behind and bool(termios.tcgetattr(terminal)[3] & termios.TOSTOP)
    except (OSError, termios.error):  # it is being closed
        return False
    finally:
        os.close(terminal)


def _has_terminal() -> bool:
    try:
        os.close(_open_terminal())
    except OSError:
        return False
    return True


def _open_terminal() -> int:
    """The terminal of this process's session; OSError if it has none."""
    return os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY)
