"""The screen of ``netkit top``, drawn by curses, and its keys.

Rules:

1. The terminal is restored whatever ends the program: a key, an exception, or one of `_ENDING`,
   whose handlers raise SystemExit. Curses itself restores it for Ctrl+Z.
2. The main thread alone uses curses. It sleeps until a key is pressed, a signal comes, or a thread
   calls `Screen.wake`.
3. Nothing reaches the terminal but printable characters of its encoding; see
   `netkit.cli.top_layout`.
"""

from __future__ import annotations

import contextlib
import curses
import locale
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..net.waker import Waker, woken_by_signals
from .top_layout import Line

# The signals that end the program, besides SIGINT. Not each system has all of them.
_ENDING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]

_NAMES = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_PPAGE: "pageup",
    curses.KEY_NPAGE: "pagedown",
    curses.KEY_HOME: "home",
    curses.KEY_END: "end",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    "\n": "enter",
    "\r": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
}

_ESCAPE_DELAY = 25  # milliseconds in which the rest of the bytes of a key come after an Escape


class Screen:
    """The terminal of this process. `opened` makes it."""

    def __init__(self, window: Any, waker: Waker) -> None:
        self._window = window
        self._waker = waker
        self._encoding = getattr(window, "encoding", "ascii")

    def wake(self) -> None:
        """End the wait of `typed`. Thread-safe."""
        self._waker.wake()

    def size(self) -> tuple[int, int]:
        """Return the columns and lines of the terminal, which the user may change."""
        with contextlib.suppress(OSError, curses.error):
            size = os.get_terminal_size(sys.stdout.fileno())
            if (size.lines, size.columns) != self._window.getmaxyx() and 0 not in size:
                curses.resizeterm(size.lines, size.columns)
                self._window.clear()
        lines, columns = self._window.getmaxyx()
        return columns, lines

    def draw(self, lines: Sequence[Line]) -> None:
        """Show `lines` instead of the former ones."""
        styles = {"": curses.A_NORMAL, "bold": curses.A_BOLD, "reverse": curses.A_REVERSE}
        columns, _ = self.size()
        self._window.erase()
        for y, (text, style) in enumerate(lines):
            shown = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
            # The cursor cannot move on from the last cell, which is an error of curses.
            with contextlib.suppress(curses.error):
                self._window.addnstr(y, 0, shown, columns, styles[style])
        self._window.refresh()

    def typed(self) -> Iterator[str]:
        """Wait for keys or `wake`, and yield each key: a character, or its name."""
        ready, _, _ = select.select([sys.stdin, self._waker.fileno()], [], [])
        if self._waker.fileno() in ready:
            self._waker.clear()
        while True:
            try:
                key = self._window.get_wch()
            except curses.error:  # there is none
                return
            name = _NAMES.get(key, key)
            if isinstance(name, str):
                yield name


@contextlib.contextmanager
def opened() -> Iterator[Screen]:
    """The terminal as a screen until the block ends. curses.error if curses does not know it.

    For the main thread. SystemExit, with the usual status, and KeyboardInterrupt end the block.
    """
    with contextlib.ExitStack() as stack:
        waker = Waker()
        stack.callback(waker.close)
        stack.enter_context(woken_by_signals(waker))
        _set_handlers(stack)
        locale.setlocale(locale.LC_ALL, "")  # curses writes in its encoding
        window = curses.initscr()
        stack.callback(curses.endwin)
        curses.noecho()
        curses.cbreak()
        curses.set_escdelay(_ESCAPE_DELAY)
        with contextlib.suppress(curses.error):  # not each terminal can hide its cursor
            curses.curs_set(0)
        window.keypad(True)
        window.nodelay(True)
        yield Screen(window, waker)


def _set_handlers(stack: contextlib.ExitStack) -> None:
    def end(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    handlers: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGWINCH: lambda *_: None,  # it ends the wait, as each signal with a handler does
        **dict.fromkeys(_ENDING, end),
    }
    for signum, handler in handlers.items():
        former = signal.getsignal(signum)
        if former is not signal.SIG_IGN:
            signal.signal(signum, handler)
            stack.callback(signal.signal, signum, former)
