"""A conversation on a terminal: the user types lines while the peer's text comes in.

Rules:

1. Incoming text never commands the terminal: control characters are made visible.
2. Incoming text is shown above the line that is being typed: a row is inserted there, and the
   cursor returns to its place (VT100's index, save and restore, and the VT102's insert line),
   whatever readline has drawn. One system call writes all of that, so that nothing gets between.
3. Only the end of the conversation interrupts the input of a line, by a signal: readline then
   restores the terminal.
"""

from __future__ import annotations

import codecs
import os
import shutil
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from types import TracebackType

from .stdio import Output

# The time after which the signal that ends the input is sent again (seconds): readline misses a
# signal that comes just before it waits.
NOTICED = 0.05


class _CaretNotation(dict[int, str]):
    """Control characters as ``cat -v`` shows them (``^[``), other unprintable ones as numbers."""

    def __missing__(self, code: int) -> str:
        if code < 0x20 or code == 0x7F:
            return "^" + chr(code ^ 0x40)
        if chr(code).isprintable():
            return chr(code)
        return ("\\u%04x" if code < 0x10000 else "\\U%08x") % code


_VISIBLE = _CaretNotation({ord("\n"): "\n", ord("\t"): "\t"})


class Visible:
    r"""Converts bytes (UTF-8), in pieces, to text that is safe to show.

    Lines end with ``\n``, even if they ended with ``\r\n``. Control characters become ``^[``,
    other unprintable characters ``\u202e``, and invalid bytes ``\xff``.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._return = ""  # a carriage return, until the next piece shows whether a newline follows

    def text(self, data: bytes, final: bool = False) -> str:
        """The text of one more piece. `final` says that it is the last one."""
        text = self._return + self._decoder.decode(data, final)
        self._return = "\r" if text.endswith("\r") and not final else ""
        text = text[: len(text) - len(self._return)]
        return text.replace("\r\n", "\n").translate(_VISIBLE)


def rows(line: str, columns: int) -> list[str]:
    """Cut `line` into pieces of at most `columns` columns; at least one piece."""
    found = [""]
    room = columns
    for char in line.expandtabs():
        width = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if width > room:
            found.append("")
            room = columns
        found[-1] += char
        room -= width
    return found


class Above:
    """Makes the output that shows text above the row of the cursor, which stays as it is.

    Text without a newline at its end is shown in a row of its own. The rest of its line is added
    there, unless the user has pressed Enter meanwhile.
    """

    # Go down one row, where the screen may have to scroll, and back: now there is room below. Then
    # save the cursor, insert a row here, which pushes this one down, and follow it.
    _INSERT = "\x1bD\x1b[A\x1b7\r\x1b[L{}\x1b8\x1b[B"
    _REPLACE = "\x1b7\x1b[A\r\x1b[K{}\x1b8"

    def __init__(self) -> None:
        self._unfinished = ""

    def entered(self) -> None:
        """Enter was pressed: the unfinished row is no longer just above the cursor."""
        self._unfinished = ""

    def show(self, text: str, columns: int) -> str:
        """The output that shows `text` on a terminal with so many columns."""
        begun, width = self._unfinished, columns - 1
        *whole, rest = (begun + text).split("\n")
        pieces = [piece for line in whole for piece in rows(line, width)]
        if rest:
            pieces += rows(rest, width)
        self._unfinished = pieces[-1] if rest else ""
        written = [self._INSERT.format(piece) for piece in pieces]
        if begun:
            written[0] = self._REPLACE.format(pieces[0])
        return "".join(written)


def is_interactive() -> bool:
    """Whether standard input and output are a terminal that `Terminal` can use."""
    try:
        import readline  # noqa: F401 - not on Windows, and not in every build
    except ImportError:
        return False
    return (
        os.environ.get("TERM", "dumb") != "dumb"
        and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
        and (sys.stdin.fileno(), sys.stdout.fileno()) == (0, 1)  # readline uses no others
    )


class _Over(BaseException):
    """The conversation is over: raised during the input of a line."""


class _Suspended(BaseException):
    """Ctrl+Z: raised during the input of a line, so that readline restores the terminal."""


class Terminal:
    """The process's terminal, in a ``with`` block of the main thread.

    It reads lines with readline, which edits them and recalls earlier ones. Other threads call
    `write` and `end`. Meanwhile it uses SIGUSR1, and SIGTERM ends the program with status 143, so
    that the terminal is restored. After Ctrl+Z and ``fg``, the half-typed line is shown again.
    """

    def __init__(self) -> None:
        self._above = Above()
        self._lock = threading.Lock()  # guards `_above`, and the order of its output
        self._output = Output(1)
        self._reading = False
        self._over = False
        self._interrupted = False
        self._half_typed = ""
        self._ended = threading.Event()

    def __enter__(self) -> Terminal:
        import readline

        readline.parse_and_bind("set horizontal-scroll-mode on")  # the line is one row, always
        # Bytes that are not text are passed on unchanged.
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        self._thread = threading.get_ident()
        self._previous = [
            (signum, signal.signal(signum, handler))
            for signum, handler in (
                (signal.SIGUSR1, self._on_signal),
                (signal.SIGTERM, terminate),
                (signal.SIGTSTP, self._on_stop),
            )
            if signal.getsignal(signum) is not signal.SIG_IGN or signum != signal.SIGTSTP
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._ended.set()
        for signum, handler in self._previous:
            signal.signal(signum, handler)
        if kind is not None or self._interrupted:  # the cursor is within a line
            self._output.write(b"\n")

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that are typed, each with its newline, until Ctrl+D or `end`."""
        try:
            while not self._over:
                line = self._input()
                with self._lock:
                    self._above.entered()
                yield (line + "\n").encode(sys.stdin.encoding, "surrogateescape")
        except (EOFError, _Over):
            return
        except KeyboardInterrupt:
            # A second signal at the wrong moment makes Python forget the exception of the first,
            # and then it takes an interrupted readline for Ctrl+C.
            if not self._interrupted:
                raise
        finally:
            self._ended.set()

    def write(self, text: str) -> None:
        """Show `text`, which must not have control characters."""
        with self._lock:
            shown = self._above.show(text, shutil.get_terminal_size().columns)
            self._output.write(encoded(shown))

    def end(self) -> None:
        """End `lines`, also while a line is being typed, and return once it has ended."""
        self._over = True
        while not self._ended.wait(NOTICED):
            signal.pthread_kill(self._thread, signal.SIGUSR1)

    def _input(self) -> str:
        while True:
            self._reading = True
            try:
                return input()
            except _Suspended:
                pass
            finally:
                self._reading = False
            self._stop_and_restore()

    def _stop_and_restore(self) -> None:
        """Stop as by default; then have readline begin with the same line."""
        import readline

        def restore() -> None:
            readline.set_startup_hook(None)
            readline.insert_text(line)

        line = self._half_typed
        self._stop()
        with self._lock:
            self._above.entered()  # the shell has written meanwhile
        readline.set_startup_hook(restore)

    def _stop(self) -> None:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._on_stop)

    def _on_stop(self, signum: int, frame: object) -> None:
        import readline

        if self._reading and not self._over:
            self._reading = False
            self._half_typed = readline.get_line_buffer()
            raise _Suspended
        self._stop()

    def _on_signal(self, signum: int, frame: object) -> None:
        if self._over and self._reading:
            self._reading = False
            self._interrupted = True
            raise _Over


def terminate(signum: int, frame: object) -> None:
    """End the program with the status of the signal, but cleanly. A signal handler."""
    raise SystemExit(128 + signum)


def encoded(text: str) -> bytes:
    """`text` encoded for standard output. Characters that its encoding lacks are escaped."""
    return text.encode(sys.stdout.encoding, "backslashreplace")
