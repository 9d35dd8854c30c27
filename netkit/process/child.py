"""A process that `multiprocessing` starts, as its parent sees it, and how to start it safely."""

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

from .signals import StopSignals

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# A parent catches these and passes them on as orders. All of them may come to the whole process
# group, from a terminal, and a worker must not obey them itself.
PARENTS_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGTTIN", "SIGTTOU") if hasattr(signal, name)
)
HELD_BACK = {*StopSignals.SIGNALS, *PARENTS_SIGNALS}


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

    with signals_held_back():
        resource_tracker.ensure_running()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Block the signals that a worker handles. A process that starts meanwhile inherits that."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A process. Holds descriptors until `close`; for one thread."""

    def __init__(
        self, context: BaseContext, target: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        """It calls ``target(*arguments)`` once it is started."""
        self._method = context.get_start_method()
        self._process = context.Process(  # type: ignore[attr-defined] # not in typeshed
            target=target, args=arguments, name="netkit-worker"
        )
        self._pidfd: int | None = None
        self.pid = 0
        self.end = -1
        """A descriptor, or a sentinel of `multiprocessing`, that is readable once it has ended."""

    def start(self) -> None:
        """Start it, with the signals that it handles blocked.

        OSError if the system cannot start it, and what pickling raises.
        """
        forks = self._method == "fork"
        before = _pipes() if forks else set()
        try:
            with signals_held_back():
                self._process.start()
        except OSError:
            if forks and has_one_thread():  # which has opened no other pipe meanwhile
                for descriptor in _pipes() - before:  # `multiprocessing` has left them open
                    os.close(descriptor)
            raise
        self.pid = self._process.pid
        self._pidfd = self._open_pidfd()
        self.end = self._process.sentinel if self._pidfd is None else self._pidfd

    def _open_pidfd(self) -> int | None:
        """A descriptor that is readable once it has ended; None if the system has none.

        The sentinel of `multiprocessing` is readable only once all processes that it has forked
        have ended, too. A forkserver's process has a better one, and is no child of this process.
        """
        if hasattr(os, "pidfd_open") and self._method != "forkserver":
            with contextlib.suppress(OSError):
                return os.pidfd_open(self.pid)
        return None

    @property
    def started(self) -> bool:
        """Whether there is, or was, a process."""
        return self._process.pid is not None

    def has_ended(self) -> bool:
        """Whether it has ended. Only after `start`."""
        return self.status is not None or self._is_lost()

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal. None while it runs, or if the status is lost."""
        status: int | None = self._process.exitcode
        return status

    def _is_lost(self) -> bool:
        """Whether it has ended, and SIGCHLD is ignored or other code has got its status."""
        from multiprocessing.connection import wait

        if not wait([self.end], 0):
            return False
        try:
            os.kill(self.pid, 0)
        except OSError:  # there is none, or by now it is another user's
            return True
        return False

    def kill(self) -> None:
        """End it at once, and wait for that; nothing if it was never started."""
        if self.started:
            self._process.kill()
            self._process.join()

    def close(self) -> None:
        """Close the descriptors, after its end. Idempotent: a signal handler may interrupt it."""
        with contextlib.suppress(ValueError):  # its status is lost, so it seems to run
            self._process.close()
        if self._pidfd is not None:
            pidfd, self._pidfd = self._pidfd, None
            os.close(pidfd)


def _pipes() -> set[int]:
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the list's own
            if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found
