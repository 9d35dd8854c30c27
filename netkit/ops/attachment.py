"""What the operators of a program have asked for: the one place where it is put together.

Nothing of it is imported unless it is switched on, or SIGUSR1 comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.kinds import check_seconds
from ..net.service_manager import service_manager
from ..process.supervised import NoNotices
from ..server.log_config import writes_json
from .internal import Placing, unchanged

if TYPE_CHECKING:
    from ..process.program import Answering, Closeable, Program
    from ..process.supervised import Notices, Supervised
    from ..server.server import Server
    from .access import AccessLog
    from .answers import Answers
    from .control import Control
    from .status import Status
    from .takeover import TakeOver


def _status(address: str | int | None) -> Status | None:
    if address is None:
        return None
    from .status import Status

    with _naming("status", address):
        return Status(address)


def _control(path: str | os.PathLike[str] | None) -> Control | None:
    if path is None:
        return None
    from .control import Control

    with _naming("control", path):
        return Control(path)


@contextlib.contextmanager
def _naming(name: str, value: object) -> Iterator[None]:
    """Name the parameter in TypeError and ValueError, whose text is about a part of its value."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}={value!r}: {error}") from None


class Operations:
    """The `Attachment` of `run`, `serve` and the command line. Can be pickled before `open`."""

    def __init__(
        self,
        status: str | int | None = None,
        control: str | os.PathLike[str] | None = None,
        access_log: str | os.PathLike[str] | None = None,
        stuck: float | None = None,
        prepare: Callable[[], object] | None = None,
        takes_over: bool = False,
    ) -> None:
        """TypeError or ValueError for an invalid address, path or number of seconds.

        `prepare` sets up the log in a process that is neither forked nor a worker. If the program
        `takes_over` listeners, its endpoints accept nobody before it is ready.
        """
        if stuck is not None:
            check_seconds("stuck", stuck, zero=False)
        self.status, self.stuck = _status(status), stuck
        self.control = _control(control)
        with _naming("access_log", access_log):
            self.access_log = None if access_log is None else os.fspath(access_log)
        if self.access_log == "":
            raise ValueError("access_log must be the name of a file, or '-', not ''")
        self._pipe: int | None = None  # between `open` and `close`: see `access.check`
        self._access: AccessLog | None = None  # between `attach` and `detach`
        self._prepare = prepare
        self._takes_over = takes_over
        self._taken: TakeOver | None = None  # between `placing` and `open`
        self.has_endpoints = status is not None or control is not None
        self.attaches = self.has_endpoints or access_log is not None or stuck is not None
        self.survives_terminal = control is not None
        self._answers: Answers | None = None
        self._stack = contextlib.ExitStack()  # what `detach` ends, the last first

    def placing(self, stack: contextlib.ExitStack) -> Placing:
        """Return where to listen instead of at an address: at what is taken over, if anything is.

        What is not used, `open` closes, or else `stack`. Failure.
        """
        if not self._takes_over or self.control is None:
            return unchanged
        from .takeover import TakeOver

        self._taken = stack.enter_context(TakeOver(self.control.endpoint))
        return self._taken.place

    def open(self, servers: Sequence[Server]) -> None:
        """Open the listeners of the endpoints. OSError or ValueError, with a text for users."""
        taken, self._taken = self._taken, None
        place = unchanged if taken is None else taken.place
        service_manager()  # removes its variables before any process is started
        if self.access_log is not None:
            from . import access

            self._pipe = access.check(self.access_log)
        if self.status is not None:
            self.status.open(servers, place)
        if self.control is not None:
            self.control.open(place)
        if taken is not None:
            taken.end_when_ready(lambda: self._claim(servers))

    def attach(self, servers: Sequence[Server]) -> Answering:
        """Begin to watch `servers`, and return what answers questions in this process."""
        answers: dict[str, Any] = {}
        if self.status is not None:
            from .metrics import of_process  # as each import here: only what is on costs anything

            metrics = of_process(servers)
            self._stack.callback(metrics.close)
            answers["metrics"] = metrics.answer
        if self.control is not None:
            self._answer_operators(servers)
        if self.stuck is not None:
            self._watch(servers, self.stuck)
        if self.access_log is not None:
            self._write_lines(self.access_log, servers)

        def answer(command: str, arguments: dict[str, Any]) -> Any:
            if command in answers:
                return answers[command](arguments)
            questions = self._answer_operators(servers).questions
            if command not in questions:
                raise ValueError(f"unknown question: {command}")
            return questions[command](**arguments)

        return answer

    def _answer_operators(self, servers: Sequence[Server]) -> Answers:
        """Return what answers the questions of commands: without a control socket, for a report."""
        if self._answers is None:
            from .answers import Answers

            self._answers = Answers(servers)
            self._stack.callback(self._answers.close)
        return self._answers

    def _write_lines(self, path: str, servers: Sequence[Server]) -> None:
        from .access import AccessLog

        self._access = AccessLog(path, writes_json(), servers)
        self._access.begin()
        self._stack.callback(self._access.end)

    def _watch(self, servers: Sequence[Server], seconds: float) -> None:
        from .stuck import StuckWatch

        watch = StuckWatch(
            seconds, lambda: [it for each in servers for it in each._connections.live()]
        )
        watch.start()
        self._stack.callback(watch.close)

    def detach(self) -> None:
        """End what `attach` has begun. Idempotent."""
        self._answers = None
        self._stack.close()

    def serve(self, program: Program) -> Closeable:
        """Start the endpoints in the background. The result ends them."""
        from .endpoints import ServedEndpoints

        return ServedEndpoints(self.status, self.control, program, self._takes_over)

    def report(self, program: Program) -> None:
        """Write a report on `program` into the log."""
        from . import report

        report.write(program)

    def reopen(self) -> bool:
        """Open the access log anew. Return whether there is one."""
        if self._access is None:
            return False
        self._access.reopen()
        return True

    def _claim(self, servers: Sequence[Server]) -> None:
        for server in servers:
            server._listeners.claim_files()
        for endpoint in filter(None, (self.status, self.control)):
            endpoint.claim()

    def release(self) -> None:
        """Leave the files of the endpoints to another program."""
        if self.status is not None:
            self.status.release()
        if self.control is not None:
            self.control.release()

    def forget(self) -> None:
        """Close this process's copies of the listeners that the parent has opened."""
        if self.status is not None:
            self.status.forget()
        if self.control is not None:
            self.control.forget()

    def notices(self, program: Supervised) -> Notices:
        """Return what tells a service manager about `program`, if there is a manager."""
        manager = service_manager()
        if not manager.notify_socket:
            return NoNotices()
        from . import systemd

        return systemd.Notices(manager, program)

    def prepare_log(self) -> None:
        """Set up the log of a new interpreter as that of the parent."""
        if self._prepare is not None:  # pragma: no cover - only in a spawned process
            self._prepare()

    def close(self) -> None:
        """Close what `open` has opened, and remove its files. Idempotent."""
        if self.status is not None:
            self.status.close()
        if self.control is not None:
            self.control.close()
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
