"""``netkit top PATH``: a screen with the clients of a running server, or one plain table."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..core.errors import Failure
from .arguments import COMMANDS, Parser, checked, complain
from .asking import VARIABLE, ControlClient, exit_status, time_of
from .ctl import add_timeout
from .display import encoded
from .stdio import Output, is_interactive
from .top_layout import plain, screen
from .top_model import Request, Row, Sample, Top

if TYPE_CHECKING:
    from .top_screen import Screen

_INTERVAL = 2.0  # seconds
_LEAST_INTERVAL = 0.1

_USAGE = "netkit top [PATH] [OPTIONS]"

_ABOUT = f"""\
{COMMANDS["top"]}

PATH is that of --control of the server. It may be left out if {VARIABLE} has it. Without a
terminal, it prints one table and ends.
"""

_EPILOG = """\
keys:
  up, down, PgUp, PgDn, Home, End   select a client
  Enter                             the lines of Python at which its thread is
  k, then y                         kill it
  /                                 show only clients with this text; Esc shows all
  a i r s t u p w                   sort by age, idle time, bytes received, bytes sent, traffic,
                                    unsent bytes, peer, where; again: the other way round
  q                                 quit

examples:
  netkit top /run/app.ctl               a screen, each 2 seconds anew
  netkit top /run/app.ctl --interval 1  each second
  netkit top /run/app.ctl --once        one table, for scripts and mails

exit status: 0 done, 1 failed, 2 wrong use, 130 Ctrl+C.

Documentation: docs/operations.md in the source.
"""


def parser() -> Parser:
    """Make the parser of the command's options."""
    parser = Parser("netkit top", usage=_USAGE, description=_ABOUT, epilog=_EPILOG)
    add = parser.add_argument
    text = f"time between two answers of the server (default: {_INTERVAL:g}s)"
    add("--interval", metavar="TIME", type=checked(_interval), default=_INTERVAL, help=text)
    add("--once", action="store_true", help="print one table, also on a terminal")
    add_timeout(parser)
    return parser


def _interval(text: str) -> float:
    seconds = time_of(text)
    if seconds is None or seconds < _LEAST_INTERVAL:
        raise ValueError(f"it must be at least {_LEAST_INTERVAL:g} seconds, not {text!r}")
    return seconds


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status. SystemExit with status 2 for wrong use."""
    reader = parser()
    arguments, words = reader.read(argv)
    words = words or [each for each in [os.environ.get(VARIABLE)] if each]
    try:
        if len(words) != 1:
            raise ValueError(f"the path of one control socket is needed, here or in {VARIABLE}")
        control = ControlClient(words[0], arguments.timeout)
    except ValueError as error:
        reader.error(str(error))
    return exit_status(lambda: _show(control, arguments.once, arguments.interval))


def _show(control: ControlClient, once: bool, interval: float) -> int:
    first = take(control)
    if first.failure:
        raise Failure(first.failure)
    if once or not is_interactive():
        return _print(first, control.name)
    _watch(first, control, interval)
    return 0


def take(control: ControlClient, clock: Callable[[], float] = time.monotonic) -> Sample:
    """Ask the server for a sample. If that fails, the sample has the reason."""
    try:
        status, clients = list(control.rows("status")), list(control.rows("conns"))
    except Failure as error:
        return Sample(clock(), failure=str(error))
    return Sample.of(clock(), status, clients)


def _print(sample: Sample, name: str) -> int:
    """Print a table, and errors to standard error. Return the exit status."""
    if sys.stdout is None:
        raise Failure("standard output is closed")
    top = Top(name)
    top.take(sample)
    Output(sys.stdout.fileno()).write(encoded(plain(top)))
    for error in sample.errors:
        complain(error)
    return 1 if sample.errors else 0


# The screen


def _watch(first: Sample, control: ControlClient, interval: float) -> None:
    """Show the screen until a key ends it. Failure if there can be no screen."""
    try:
        import curses

        from .top_screen import opened
    except ImportError:
        raise Failure("this Python has no module curses: use --once") from None
    top = Top(control.name)
    top.take(first)
    try:
        with opened() as terminal, contextlib.closing(Poller(control, interval)) as poller:
            show(top, terminal, poller)
    except curses.error as error:
        kind = os.environ.get("TERM", "")
        raise Failure(f"no screen on a terminal {kind!r}: {error}; use --once") from None


def show(top: Top, terminal: Screen, poller: Poller) -> None:
    """Draw what the server answers, and do what the keys ask for, until the user quits."""
    poller.start(terminal.wake)
    while not top.is_over:
        terminal.draw(screen(top, *terminal.size()))
        for key in terminal.typed():
            poller.ask(top.press(key))
        for answer in poller.answers():
            if isinstance(answer, Sample):
                top.take(answer)
                poller.ask(Request("stacks", top.stack_of) if top.stack_of else None)
            else:
                top.answered(*answer)


Answer = tuple[Request, Sequence[Row], str]  # the last one is why it has failed


class Poller:
    """A thread that takes a sample at each interval, and asks what it is given to ask.

    So a server that answers late does not keep the screen from reacting to keys.
    """

    def __init__(self, control: ControlClient, interval: float) -> None:
        self._control = control
        self._interval = interval
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Sample | Answer] = queue.SimpleQueue()
        self._is_closed = False

    def start(self, wake: Callable[[], object]) -> None:
        """Start the thread, which calls `wake` after each answer."""
        threading.Thread(target=self._run, args=(wake,), name="netkit-top", daemon=True).start()

    def ask(self, request: Request | None) -> None:
        """Have the thread ask the server at once. None asks for nothing."""
        if request is not None:
            self._requests.put(request)

    def answers(self) -> Iterator[Sample | Answer]:
        """Yield what has been answered since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._answers.get_nowait()

    def close(self) -> None:
        """Have the thread end after its present request. Does not wait."""
        self._is_closed = True
        self._requests.put(None)

    def _run(self, wake: Callable[[], object]) -> None:
        while not self._is_closed:
            try:
                request = self._requests.get(timeout=self._interval)
            except queue.Empty:
                self._answers.put(take(self._control))
            else:
                if request is not None:
                    self._answers.put(self._answer(request))
            wake()

    def _answer(self, request: Request) -> Answer:
        try:
            rows = list(self._control.rows(f"{request.command} {request.id}"))
        except Failure as error:
            return request, (), str(error)
        return request, rows, ""
