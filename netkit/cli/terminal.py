"""A conversation on a terminal: the user edits a line while the peer's text comes in above it.

prompt_toolkit, of the extra ``cli``, edits the lines. Rules:

1. Each prompt has an event loop of its own, in the main thread, which alone draws on the terminal
   meanwhile. Another thread has its text shown there, and waits until it is shown, so the peer is
   slowed down if the terminal is slow. Between two prompts that thread writes by itself.
2. Text without a newline at its end is shown in a row above the typed line, and its rest is added
   there. Pressing Enter ends that row.
3. The text must not contain control characters; see `netkit.cli.display`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.renderer import CPR_Support

from .display import Rows, encoded
from .stdio import Output


class Terminal:
    """The process's terminal, in a ``with`` block of the main thread.

    The main thread iterates over the lines that are typed, while another thread calls `write` and
    `end_after`. In the main thread Ctrl+C raises KeyboardInterrupt, and SIGTERM SystemExit with the
    status 143. After Ctrl+Z and ``fg`` the line that was being typed is shown again.
    """

    def __init__(self) -> None:
        keys = KeyBindings()
        keys.add("c-c")(lambda _: self._interrupt(KeyboardInterrupt()))
        keys.add("c-z")(lambda _: self._suspend())
        keys.add("c-d", filter=Condition(self._is_empty))(lambda _: self.end_after(0))
        self._session: PromptSession[str] = PromptSession(self._above, key_bindings=keys)
        # Where the cursor is does not matter, and not every terminal answers the question.
        self._session.app.renderer.cpr_support = CPR_Support.NOT_SUPPORTED
        self._output = Output(sys.stdout.fileno())
        self._lock = threading.Lock()  # guards what follows, and output while no prompt is shown
        self._loop: asyncio.AbstractEventLoop | None = None  # of the prompt that is shown
        self._rows = Rows()  # the unfinished row is above the typed line
        self._ended = False  # no further prompt will be shown
        self._showing: Future[None] | None = None  # the last text that the loop was given
        # Of the main thread and its signal handler.
        self._prompting = False
        self._interruption: BaseException | None = None

    def __enter__(self) -> Terminal:
        # Between two prompts there is no echo, either: keys that are pressed then are for the next
        # prompt. But Ctrl+C is a signal then, since the main thread may wait for a slow peer.
        self._attributes = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin, termios.TCSANOW)
        handlers: dict[int, Callable[[int, Any], None]] = {
            signal.SIGINT: lambda *_: self._interrupt(KeyboardInterrupt()),
            signal.SIGTERM: lambda signum, _: self._interrupt(SystemExit(128 + signum)),
            signal.SIGTSTP: lambda *_: self._suspend(),
        }
        self._previous = [
            (signum, signal.signal(signum, handler))
            for signum, handler in handlers.items()
            if signal.getsignal(signum) is not signal.SIG_IGN
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous:
            signal.signal(signum, handler)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._attributes)
        with self._lock:
            self._ended = True
            self._put("")

    def __iter__(self) -> Iterator[bytes]:
        """Yield each line that is typed, with its newline, until Ctrl+D or `end_after`."""
        try:
            while not self._ended:
                line = self._line()
                # Pasted lines have their newlines already.
                line += "" if line.endswith("\n") else "\n"
                # Bytes that are not text are passed on unchanged.
                yield line.encode(sys.stdin.encoding, "surrogateescape")
        except EOFError:
            return
        finally:
            with self._lock:
                self._ended = True

    def _line(self) -> str:
        self._prompting = True
        wakeup_fd = signal.set_wakeup_fd(-1)  # the event loop sets its own
        try:
            return asyncio.run(self._prompt())
        finally:
            signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
            self._prompting = False
            if self._interruption is not None:
                raise self._interruption

    def _interrupt(self, interruption: BaseException) -> None:
        """Raise the exception in the main thread, but not in the event loop, which may lose it.

        Called by signal handlers, and for Ctrl+C.
        """
        if not self._prompting:
            raise interruption
        self._interruption = interruption
        if self._loop is not None:  # pragma: no branch - the prompt has just begun or ended
            self._loop.call_soon_threadsafe(self._leave_if_ended)

    def _suspend(self) -> None:
        if self._loop is None:
            self._stop()
        else:
            self._loop.call_soon_threadsafe(run_in_terminal, self._stop)

    def _stop(self) -> None:
        handler = signal.getsignal(signal.SIGTSTP)
        if handler is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(0, signal.SIGTSTP)  # the process group, as a terminal does
            signal.signal(signal.SIGTSTP, handler)

    def write(self, text: str) -> None:
        """Show `text`, and return once it is shown. One thread at a time may call it.

        Raises OutputError.
        """
        with self._lock:
            if self._loop is None:
                self._put(text)
                return
            showing = asyncio.run_coroutine_threadsafe(self._show(text), self._loop)
            self._showing = showing
        showing.result()

    def end_after(self, _: float) -> None:
        """End the iteration now, also while a line is being typed. Thread-safe."""
        with self._lock:
            self._ended = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._leave_if_ended)

    # In the event loop

    async def _prompt(self) -> str:
        """Return the next line that is typed. EOFError after Ctrl+D or `end_after`."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        try:
            return await self._session.prompt_async(
                pre_run=self._leave_if_ended, set_exception_handler=False, handle_sigint=False
            )
        finally:
            with self._lock:
                self._loop = None
                self._rows.rest()  # it stays on the screen, above the typed line
            if self._showing is not None:
                await asyncio.wait([asyncio.wrap_future(self._showing)])

    def _leave_if_ended(self) -> None:
        app = self._session.app
        over = self._ended or self._interruption is not None
        if over and app.is_running and not app.is_done:
            # A row without text is not left on the screen.
            app.erase_when_done = not self._rows.unfinished and self._is_empty()
            app.exit(exception=EOFError())

    def _is_empty(self) -> bool:
        return not self._session.default_buffer.text

    async def _show(self, text: str) -> None:
        app = self._session.app
        if app.is_running:  # pragma: no branch - else the prompt has just ended
            app.renderer.erase()
        self._put(text)
        app.invalidate()

    def _put(self, text: str) -> None:
        """Write the whole lines of `text`, or all of it if no further prompt will be shown."""
        shown = self._rows.add(text)
        if self._ended:
            shown += self._rows.rest()
        if shown:
            self._output.write(encoded(shown))

    def _above(self) -> str:
        """Return the prompt: the unfinished row, which is above the typed line."""
        unfinished = self._rows.unfinished.expandtabs()
        return f"{unfinished}\n" if unfinished else ""
