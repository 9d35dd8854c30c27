"""A process that a parent has started, and how it is started safely.

The two exchange messages (`netkit.process.channel`). Each sees the end of input once the other one
has ended in any way.
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

from ..net.forks import do_not_undo, undo_in_children
from .channel import Channel, channel_pair
from .signals import REQUESTS

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


class Child:
    """A process of this one. For one thread. Holds descriptors from `start` until `release`."""

    channel: Channel
    """The parent's end, from `start` on."""
    name = "netkit-child"
    end: Any
    """Becomes readable at the end of the process (`multiprocessing.connection.wait`)."""

    def __init__(self) -> None:
        self.pid = 0
        self.status: int | None = 0
        """The exit status, once it has ended, negative for a signal; None if it is lost."""
        self._process: Any = None  # that of `multiprocessing`, until it is released
        self._pidfd: int | None = None

    @property
    def is_started(self) -> bool:
        """Whether there is a process that has not been released."""
        return self._process is not None and self._process.pid is not None

    def start(self, context: BaseContext, target: Callable[..., None], *arguments: Any) -> None:
        """Start a process that calls ``target(channel, *arguments)`` with its end of the channel.

        OSError if the system cannot start it, and what pickling raises. Call `kill` and
        `release` after any exception.
        """
        self.channel, self._theirs = channel_pair()
        self._process = context.Process(  # type: ignore[attr-defined] # not in typeshed
            target=target, args=(self._theirs, *arguments), name=self.name
        )
        # A child with a copy of the parent's end would not see that the parent has ended.
        undo_in_children(self._end_in_child)
        method = context.get_start_method()
        _start(self._process, method)
        self._theirs.close()
        self.pid, self.end = self._process.pid, self._process.sentinel
        # The sentinel of `multiprocessing` is readable only once all processes that the worker has
        # forked have ended, too. A forkserver's worker has a better one, and is no child of ours.
        if hasattr(os, "pidfd_open") and method != "forkserver":
            with contextlib.suppress(OSError):
                self.end = self._pidfd = os.pidfd_open(self.pid)

    def has_ended(self) -> bool:
        """Whether the process, which has been started, has ended. Never waits."""
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

    def kill(self) -> None:
        """Kill the process, and wait for its end, unless it has ended or was never started."""
        if self.is_started:
            self._process.kill()
            self._process.join()

    def release(self) -> None:
        """Note the status, and close the parent's descriptors, once the process has ended.

        Idempotent, since a signal handler may interrupt this. Does nothing before `start`.
        """
        if self._process is None:
            return
        if self.is_started:
            self.status = self._process.exitcode
        do_not_undo(self._end_in_child)
        self._forget()
        self._theirs.close()
        process, self._process = self._process, None
        with contextlib.suppress(ValueError):  # its status is lost, so it seems to run
            process.close()

    def _forget(self) -> None:
        self.channel.close()
        if self._pidfd is not None:
            pidfd, self._pidfd = self._pidfd, None
            os.close(pidfd)

    def _end_in_child(self) -> None:
        """Close the copies of a forked child."""
        self._forget()
        # `multiprocessing` has pipes to each process, and closes them in their own parent only.
        popen: Any = getattr(self._process, "_popen", None)
        for descriptor in getattr(getattr(popen, "finalizer", None), "_args", ()):
            with contextlib.suppress(OSError, TypeError):
                os.close(descriptor)


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
