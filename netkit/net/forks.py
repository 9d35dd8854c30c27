"""Restores, in forked child processes, what netkit has changed in their parent (fork(2)).

A handler may fork, by `os.fork` or through `multiprocessing`. The child has a copy of the thread
that forks, and no other thread. Rules:

1. A signal that is sent to a child is the child's own: before the child receives a signal, it has
   the signal handlers that were there without netkit.
2. No lock of netkit's is held in a child by a thread that only the parent has.
3. No signal handler interrupts what a child does for rules 1 and 2. A signal that comes meanwhile,
   and whose handler raises KeyboardInterrupt or SystemExit, ends the child at once: Python would
   report the exception, ignore it, and go on (`os.register_at_fork`).

A program that is executed needs none of it: the kernel resets signal handlers (execve(2)), and
netkit neither ignores nor blocks signals while a server runs. A command ignores SIGINT and SIGTERM
once its server has stopped, until the process ends; a program that is executed then ignores them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

from ..core.errors import ServerStateError

Undo = Callable[[], object]

# The functions that a child calls: those that undo something, the last one first; then the others.
# Lists are thread-safe for single calls, and a lock could be held by another thread during a fork.
_undoing: list[Undo] = []
_renewing: list[Undo] = []
_masks = threading.local()  # the signal masks of this thread from before each fork under way


def undo_in_children(undo: Undo) -> None:
    """Have `undo` called in each child that is forked from now on; the last one is called first.

    No signal arrives until then. `undo` must not raise. Thread-safe.
    """
    _undoing.append(undo)


def do_not_undo(undo: Undo) -> None:
    """Cancel `undo_in_children`. Idempotent and thread-safe."""
    for entry in tuple(_undoing):
        if entry == undo:
            with contextlib.suppress(ValueError):
                _undoing.remove(entry)


def call_in_children(function: Undo) -> None:
    """Have `function` called in each child from now on, as by `undo_in_children`, but always."""
    _renewing.append(function)


def renew_in_children(owner: object, name: str) -> None:
    """Replace the lock `name` of `owner` in each child, where no thread may be left to release it.

    For re-entrant locks of modules and objects that live as long as the process.
    """
    call_in_children(lambda: setattr(owner, name, threading.RLock()))


def problem_of_main() -> str | None:
    """Return the error if the main module starts a server while a spawned process imports it.

    A process that `multiprocessing` spawns imports the main module of its parent, under another
    name, and so runs all of it again that is not under the guard.
    """
    imported = sys.modules.get("__mp_main__")
    # In other processes it is the main module at the time when `multiprocessing` was imported: that
    # of a debugger, say, which runs the program as another main module.
    imported_anew = imported is not None and imported.__name__ == "__mp_main__"
    if not imported_anew or imported is sys.modules["__main__"]:
        return None
    guard = 'if __name__ == "__main__"'
    return f"a process that was spawned imports this script: start the server under {guard}"


def check_main() -> None:
    """Raise ServerStateError if `problem_of_main` returns an error."""
    problem = problem_of_main()
    if problem is not None:
        raise ServerStateError(problem)


def _hold_back_signals() -> None:
    if not hasattr(_masks, "before"):
        _masks.before = []
    # In two steps: a signal handler may raise in between, while the mask is as before.
    _masks.before.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _let_signals_in() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before.pop())


def _begin_child() -> None:
    while _undoing:
        _undoing.pop()()
    for renew in _renewing:
        renew()
    try:
        _let_signals_in()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows
    os.register_at_fork(
        before=_hold_back_signals, after_in_parent=_let_signals_in, after_in_child=_begin_child
    )
