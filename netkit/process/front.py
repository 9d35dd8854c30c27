"""The life of the front process, which answers the operators of a program with workers.

It has threads, and waits for workers, which its parent must not. It ends with its parent.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

from ..net.forks import undo_in_children
from .channel import Channel, Questions, State, Tell
from .errand import Errand
from .memory import Memory
from .program import Attachment, ProgramState
from .remote import RemoteProgram
from .signals import REQUESTS
from .work import prepare_process

REPORT = "report"
_REPORT_SECONDS = 30.0  # for a report, in a process that has no endpoints


def answer_operators(
    channel: Channel,
    attachment: Attachment,
    memory: Memory,
    facts: ProgramState,
    forget: Callable[[], object] | None,
    status_lines: bool,
) -> None:
    """Serve the endpoints of `attachment` until the parent closes `channel`, or ends.

    Without endpoints, write one report. In a forked process, `forget` closes what the process has
    of its parent and does not need; a new interpreter has None, and its log shows status lines if
    `status_lines` says so.
    """
    undo_in_children(channel.close)
    for signum in REQUESTS:  # they may come to the whole process group, and the parent obeys them
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
    if forget is None:
        prepare_process(status_lines)
        attachment.prepare_log()
    else:
        forget()
    program = RemoteProgram(channel.trust(), memory, facts)
    with _Front(channel, attachment, program) as front, contextlib.suppress(EOFError, OSError):
        front.obey()


class _Front(contextlib.ExitStack):
    """Obeys the parent. Ends the endpoints at its end. For one thread."""

    def __init__(self, channel: Channel, attachment: Attachment, program: RemoteProgram) -> None:
        super().__init__()
        self._channel = channel
        self._attachment = attachment
        self._program = program
        self._knows_all = False  # whether the parent has named all workers
        self._reports = Errand(REPORT, lambda: attachment.report(program), None)

    def obey(self) -> None:
        """Return once a report is written that is all there is to do. EOFError, OSError."""
        is_over = False
        while not is_over:
            for message in self._channel.receive(Questions, State, Tell):
                if isinstance(message, Questions):
                    self._program.meet(*message, self._channel.take_socket())
                elif isinstance(message, State):
                    self._update(message)
                else:
                    is_over = self._report()

    def _update(self, state: State) -> None:
        self._program.update(state)
        if not self._knows_all:
            self._knows_all = True
            self._program.has_met_all()
            if self._attachment.has_endpoints:
                self.callback(self._attachment.serve(self._program).close)

    def _report(self) -> bool:
        self._reports.ask()
        if self._attachment.has_endpoints:
            return False
        self._reports.join(_REPORT_SECONDS)
        return True
