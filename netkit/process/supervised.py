"""A program as its supervising thread sees it, and what notifies a service manager of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..core.deadline import Deadline
from .group import Group
from .local import phase_of
from .signals import Request
from .worker import READY_SECONDS

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..server.server import Server
    from .crew import Crew
    from .hooks import Hooks
    from .program import Attachment
    from .signals import Mailbox


class Supervised(Protocol):
    """A program, in one process or in several. No method waits.

    For the thread that supervises, except `wake`, `phase`, `workers` and `connected`.
    """

    def wake(self) -> None:
        """End the present wait of the thread that supervises."""
        ...

    def phase(self) -> str:
        """As `ProgramState.phase`."""
        ...

    def workers(self) -> int | None:
        """The number of worker processes that accept clients; None if this process does."""
        ...

    def connected(self) -> int:
        """The number of open connections; with workers, as of their last answers to `ask`."""
        ...

    def start_seconds(self) -> float | None:
        """How long a start may take; None if it runs no code of the program."""
        ...

    def stop_seconds(self) -> float:
        """How long the stop that has begun may take until the last clients are cut."""
        ...

    def ask(self, seconds: float | None) -> None:
        """Have each accepting thread answer.

        A worker that has not answered after `seconds` is killed and replaced; None for no limit.
        """
        ...

    def has_answered(self) -> bool:
        """Whether all accepting threads of this process have answered the last `ask`."""
        ...


class Notices(Protocol):
    """Tells a service manager about a program. A context manager, for the time of the program."""

    def due(self) -> Deadline:
        """When `step` is to be called at the latest."""
        ...

    def step(self) -> None:
        """Do what is due. To be called whenever something may have changed."""
        ...

    def stopped(self, report: object) -> None:
        """Tell the manager how the stop has ended."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...


class NoNotices:
    """For a program without a service manager, and for worker processes."""

    def due(self) -> Deadline:
        return Deadline(None)

    def step(self) -> None: ...

    def stopped(self, report: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None: ...


def notices_of(attachment: Attachment | None, program: Supervised) -> Notices:
    """Return what notifies a service manager of the state of `program`."""
    return NoNotices() if attachment is None else attachment.notices(program)


class SupervisedGroup:
    """The servers of this process, as a `Supervised`."""

    def __init__(self, group: Group, hooks: Hooks | None) -> None:
        self._group = group
        self._hooks = hooks
        self._answers: list[threading.Event] = []  # one for each server, set by its answer
        self.stops_early = False
        """Whether a stop has been requested before `on_start` has returned."""

    def wake(self) -> None:
        self._group.mailbox.post(Request.LOOK)

    def phase(self) -> str:
        return "stopping" if self.stops_early else phase_of(self._group.servers)

    def workers(self) -> None:
        return None

    def connected(self) -> int:
        return sum(server.connection_count for server in self._group.servers)

    def start_seconds(self) -> float | None:
        return self._hooks.start_seconds if self._hooks else None

    def stop_seconds(self) -> float:
        for_hook = self._hooks.stop_seconds if self._hooks else 0.0
        seconds = max(map(self._stop_seconds_of, self._group.servers)) + for_hook
        if self.stops_early:  # first `on_start` has time to return, and then comes the delay
            options = [server._options for server in self._group.servers]
            seconds += options[0].drain_timeout + max(each.stop_delay for each in options)
        return seconds

    def _stop_seconds_of(self, server: Server) -> float:
        timeout, patience, delay = server._drain.order
        if timeout is None:
            timeout = self._group.drain_timeout
        if timeout is None:
            timeout = server._options.drain_timeout
        # An order that the program has given to `stop` itself shows in the deadline alone.
        return max(delay + patience + timeout, server._connections.time_left() or 0.0)

    def ask(self, seconds: float | None) -> None:
        self._answers = [threading.Event() for _ in self._group.servers]
        for server, answer in zip(self._group.servers, self._answers, strict=True):
            server._accept_loop.call_soon(answer.set)

    def has_answered(self) -> bool:
        return all(answer.is_set() for answer in self._answers)


class SupervisedCrew:
    """The workers of this process, as a `Supervised`."""

    def __init__(
        self,
        crew: Crew,
        mailbox: Mailbox,
        phase: Callable[[], str],
        seconds: Callable[[], float],
    ) -> None:
        """`phase` is that method. `seconds` is how long a stop may take, without the hooks."""
        self._crew = crew
        self._mailbox = mailbox
        self.phase = phase
        self._seconds = seconds

    def wake(self) -> None:
        self._mailbox.post(Request.LOOK)

    def workers(self) -> int:
        crew = self._crew
        serving = [it for it in crew.workers if it.ready and (crew.stopping or not it.leaving)]
        return min(len(serving), crew.count)  # in a reload, there are old and new ones

    def connected(self) -> int:
        return sum(worker.connections for worker in self._crew.workers)

    def start_seconds(self) -> float:
        return READY_SECONDS

    def stop_seconds(self) -> float:
        loaded = [worker.loaded for worker in self._crew.workers if worker.loaded is not None]
        for_hooks = max((each.hook_seconds for each in loaded), default=0.0)
        return self._seconds() + for_hooks

    def ask(self, seconds: float | None) -> None:
        for worker in self._crew.workers:
            worker.ask(seconds)

    def has_answered(self) -> bool:
        """True: the parent is well whether the workers are or not."""
        return True
