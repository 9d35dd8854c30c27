"""Turns signals into requests for the thread that waits for them.

Python runs a signal handler between two instructions of the main thread, where no lock may be
taken: the interrupted code may hold it. So a signal handler only puts a `Request` into a queue. The
main thread takes it from there, in its own time. A signal may also come just before the main thread
waits, which would then wait in spite of it. So the C handler of Python ends the wait, too
(`signal.set_wakeup_fd`).

What the C handler writes only ends the wait, and says nothing about the signal: a forked process
may write it, too, until it executes a program (`subprocess` with ``user=`` forks without the hooks
of `netkit.net.forks`), and the signals of that process are its own.
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
from enum import Enum
from typing import Any

from ..net.forks import do_not_undo, undo_in_children
from ..net.service_manager import service_manager
from ..net.waker import Waker


class Request(Enum):
    """A request to the thread that supervises."""

    LOOK = "look: something has changed"
    STOP = "stop gracefully"
    INTERRUPT = "stop gracefully, or cut the clients if it is stopping already"
    RELOAD = "read the files again; with workers, load the code again"
    MORE = "have one more worker"
    FEWER = "have one worker less"
    REPORT = "write a report into the log"


# The request of each signal that is caught. Windows has only the first two; SIGINFO is Ctrl+T on
# BSD and macOS.
_NAMES = {
    "SIGINT": Request.INTERRUPT,
    "SIGTERM": Request.STOP,
    "SIGHUP": Request.RELOAD,
    "SIGTTIN": Request.MORE,
    "SIGTTOU": Request.FEWER,
    "SIGUSR1": Request.REPORT,
    "SIGINFO": Request.REPORT,
}
REQUESTS = {getattr(signal, name): _NAMES[name] for name in _NAMES if hasattr(signal, name)}
_SIGHUP = getattr(signal, "SIGHUP", None)
REPORTS = tuple(signum for signum in REQUESTS if REQUESTS[signum] is Request.REPORT)
_TRIES = 1000  # how often signal handlers may interrupt the same action by an exception

SignalHandler = Callable[[int, Any], Any] | int | None


class Mailbox:
    """A queue of requests for one thread. Holds two descriptors until `close`, which is idempotent.

    `post` may be called from any thread and from signal handlers.
    """

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()  # thread-safe, and without a lock
        self._waker = Waker()

    def post(self, request: Request) -> None:
        """Append a request. Never waits. A request that is posted after `close` is lost."""
        self._requests.append(request)
        self._waker.wake()

    def wait(self, seconds: float | None = None) -> list[Request]:
        """Wait for requests, for at most `seconds`, and return them.

        Perhaps there are none: a signal of a forked process may end the wait, too.
        """
        if seconds is not None and not self._waker.wait(seconds):
            return []
        self._waker.clear()
        return [self._requests.popleft() for _ in range(len(self._requests))]

    def rest(self) -> list[Request]:
        """Return the requests that are there, without waiting."""
        self._waker.wake()
        return self.wait()

    def fileno(self) -> int:
        """The descriptor to wait for before `rest`."""
        return self._waker.fileno()

    def wakeup_fileno(self) -> int:
        """The descriptor for `signal.set_wakeup_fd`."""
        return self._waker.input_fileno()

    def close(self) -> None:
        self._waker.close()


class StopSignals:
    """Catches SIGINT and SIGTERM while the ``with`` block runs, and posts them to `mailbox`.

    Also SIGHUP, if the program neither ignores (nohup(1)) nor handles it, SIGUSR1 (and SIGINFO)
    likewise, and the signals given to `catch`. For the main thread only: ValueError in another one.

    At the end, and whenever a signal handler of the program raises an exception, the former signal
    handlers are restored; or SIGINT and SIGTERM get `afterwards`, if it is given: a program that is
    about to exit with a status of its own ignores them (``signal.SIG_IGN``). A process that is
    forked meanwhile, or while a signal has `afterwards`, has the former handlers from its start.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, afterwards: SignalHandler = None, survives_terminal: bool = False) -> None:
        """With `survives_terminal`, SIGHUP does not stop the program if its terminal is lost.

        It never does if a service manager has started the program.
        """
        self._afterwards = afterwards
        self._former: dict[int, SignalHandler] = {}
        self._former_fds: list[int] = []
        self._disregarded: set[int] = set()
        self._depends_on_terminal = False
        self._survives_terminal = survives_terminal or service_manager().supervises

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("signals can only be handled in the main thread")
        try:
            self.mailbox = Mailbox()
            undo_in_children(self._restore)
            # By `map`, so that no signal handler can raise between the call and the note of it.
            set_fd = functools.partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
            self._former_fds.extend(map(set_fd, [self.mailbox.wakeup_fileno()]))
            self.catch(*self.SIGNALS)
            if _SIGHUP is not None and signal.getsignal(_SIGHUP) is signal.SIG_DFL:
                self._depends_on_terminal = not self._survives_terminal and _has_terminal()
                self.catch(_SIGHUP)  # before the server serves, or it would end the program
            self.catch(*filter(_is_free, REPORTS))
            return self
        except BaseException:
            self.close()
            raise

    def catch(self, *signals: signal.Signals) -> None:
        """Post these signals, too, except those given to `disregard`."""
        for signum in signals:
            self._former.setdefault(signum, signal.getsignal(signum))  # before it is changed
            signal.signal(signum, self._post)

    def disregard(self, *signals: signal.Signals) -> None:
        """Have these signals do nothing but end the present wait for the mailbox.

        They are caught, not ignored, since a program that is executed inherits ignored signals. The
        exception is SIGTTIN where there is a terminal: for each read in the background, the
        terminal sends SIGTTIN to all processes of the group until one of them ignores it.
        """
        self._disregarded.update(signals)
        self.catch(*signals)
        for signum in signals:
            if REQUESTS.get(signum) is Request.MORE and _has_terminal():
                signal.signal(signum, signal.SIG_IGN)

    def _post(self, signum: int, frame: object) -> None:
        """The signal handler: the one place where a signal becomes a request."""
        request = REQUESTS.get(signum, Request.LOOK)
        if request is Request.RELOAD and self._depends_on_terminal and not _has_terminal():
            request = Request.STOP  # the terminal is lost on which the program was started
        elif request is Request.FEWER and stops_writers():
            # The terminal has sent it to a process in the background that writes. The write is
            # interrupted forever while SIGTTOU is caught, and succeeds if it is ignored.
            signal.signal(signum, signal.SIG_IGN)
            request = Request.LOOK
        if signum not in self._disregarded:
            self.mailbox.post(request)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Restore the signal handlers before the ``with`` block ends. Idempotent."""
        despite_signals(lambda: self._restore(self._afterwards))

    def _restore(self, afterwards: SignalHandler = None) -> None:
        hook = sys.unraisablehook
        if not isinstance(hook, _UnlessLate):
            hook = sys.unraisablehook = _UnlessLate(hook)
        before = {n: h for n, h in self._former.items() if n in self.SIGNALS and h != afterwards}
        if afterwards is not None and before:  # first, since another thread may fork at any time
            undo_in_children(functools.partial(_replace, afterwards, before))
        while self._former:
            signum, handler = next(reversed(self._former.items()))
            if afterwards is not None and signum in self.SIGNALS:
                handler = afterwards
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._former.pop(signum, None)
        if afterwards is None:  # else a late signal may come until the program exits
            sys.unraisablehook = hook.report
        while self._former_fds:
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(OSError, ValueError):  # it has been closed meanwhile
                signal.set_wakeup_fd(self._former_fds[-1])
            self._former_fds.clear()
        do_not_undo(self._restore)
        if hasattr(self, "mailbox"):  # a signal handler may raise before it is made
            self.mailbox.close()


def _replace(handler: SignalHandler, before: dict[int, SignalHandler]) -> None:
    """Restore the handlers from before of the signals that still have `handler`."""
    for signum, former in before.items():
        if signal.getsignal(signum) == handler:
            signal.signal(signum, signal.SIG_DFL if former is None else former)


class _UnlessLate:
    """A `sys.unraisablehook` that leaves out one report of Python's.

    That report says that a signal came while its handler was being replaced.
    """

    def __init__(self, report: Callable[[Any], object]) -> None:
        self.report = report

    def __call__(self, unraisable: Any) -> None:
        if "ignored due to race condition" not in str(unraisable.exc_value):
            self.report(unraisable)


def despite_signals(action: Callable[[], object]) -> None:
    """Call `action` until it returns, though signal handlers of the program may raise exceptions.

    `action` must be idempotent. Raises the last of those exceptions at the end, or the exception
    of `action` itself, which comes too often to be a signal handler's.
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


def _is_free(signum: int) -> bool:
    """Whether neither the program nor a library in C (faulthandler) handles or ignores a signal."""
    if signal.getsignal(signum) is not signal.SIG_DFL:
        return False
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        caught = next(int(line[7:], 16) for line in status if line.startswith(b"SigCgt:"))
        return not caught >> (signum - 1) & 1
    return True  # pragma: no cover - not Linux


# The terminal of this process's session (termios(3))


def _has_terminal() -> bool:
    try:
        os.close(_open_terminal())
    except OSError:
        return False
    return True


def stops_writers() -> bool:
    """Whether this process is in the background of a terminal that stops background writers."""
    import termios  # not on Windows

    try:
        with open(_open_terminal(), "rb", buffering=0) as terminal:
            in_background = os.tcgetpgrp(terminal.fileno()) != os.getpgrp()
            return in_background and bool(termios.tcgetattr(terminal)[3] & termios.TOSTOP)
    except (OSError, termios.error):  # there is no terminal, or it is being closed
        return False


def _open_terminal() -> int:
    return os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY)
