"""The terminal of this process's session, as the signals that it sends need it (termios(3))."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

_SIGHUP = getattr(signal, "SIGHUP", None)  # not on Windows


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(_open_terminal())
    except OSError:
        return False
    return True


def watch_terminal() -> Callable[[], bool]:
    """Return a function that says whether the present terminal is lost.

    The kernel sends SIGHUP when a terminal is lost. The function always returns False in a process
    that has no terminal now, or that does not let SIGHUP end it: it ignores SIGHUP, as under
    nohup(1), or handles it.
    """
    default = _SIGHUP is not None and signal.getsignal(_SIGHUP) is signal.SIG_DFL
    watched = default and has_terminal()
    return lambda: watched and not has_terminal()


def stops_writers() -> bool:
    """Whether this process is in the background of a terminal that stops background writers."""
    import termios  # not on Windows

    try:
        terminal = _open_terminal()
    except OSError:  # there is none
        return False
    try:
        in_background = os.tcgetpgrp(terminal) != os.getpgrp()
        return in_background and bool(termios.tcgetattr(terminal)[3] & termios.TOSTOP)
    except (OSError, termios.error):  # it is being closed
        return False
    finally:
        os.close(terminal)


def _open_terminal() -> int:
    return os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY)
