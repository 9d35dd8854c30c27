"""The front process of a program with workers, as the parent sees it.

Rules:

1. The front process ends with the parent, and is replaced if it dies, at once at first, and then
   after a pause that doubles. Without endpoints there is one only while it writes a report.
2. The front process and each worker have a socket of their own, which the parent makes as soon as
   the worker accepts clients. So no answer passes through the parent.
3. The parent never waits for the front process. What cannot be sent to it is sent later, or lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..core import events
from ..core.backoff import BackOff
from ..core.deadline import Deadline
from ..net import sockopts
from .channel import Channel, Questions, State, Tell
from .child import Child
from .program import Attachment
from .remote import SUSPEND, check_order, suspends
from .worker import Worker

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before a front process is replaced
_STEADY = 5.0  # seconds after which a front process has not failed to start
_END_SECONDS = 0.5  # for the front process to end what it is answering


class Operators:
    """Keeps a front process, and carries out its orders. For one thread."""

    def __init__(
        self,
        attachment: Attachment | None,
        start: Callable[[Child], None],
        obey: Callable[[str, dict[str, Any]], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        """`obey` is called with the orders of `Program.order`, except ``standing``."""
        self._is_wanted = attachment is not None and attachment.has_endpoints
        self._can_report = attachment is not None
        self._start, self._obey, self._emit = start, obey, emit
        self._front: Child | None = None
        self._standing: dict[str, tuple[str, str]] = {}  # by key, in the order in which they came
        self._workers: Iterable[Worker] = ()
        self._numbers = itertools.count(1)
        self._met: set[int] = set()  # the numbers of the workers that the front process knows
        self._sent: State | None = None  # what it knows of the program
        self._back_off = BackOff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._not_before = Deadline(0)
        self._steady_at, self._kill_at = Deadline(None), Deadline(None)
        self._is_to_report = False

    # For the parent's loop

    def descriptors(self) -> Iterator[Any]:
        """What the parent waits for."""
        if self._front is not None:
            yield self._front.end
            if not self._front.channel.closed:
                yield self._front.channel

    def next_step(self) -> Deadline:
        """When `step` is due even if nothing happens."""
        if self._front is not None:
            return self._kill_at
        return self._not_before if self._is_wanted else Deadline(None)

    def step(self, workers: Iterable[Worker], state: Callable[[], State]) -> None:
        """Do what is due. `state` is called once orders are carried out, which may change it."""
        self._workers = workers
        if self._front is not None:
            self._listen(self._front)
            self._check(self._front)
        is_due = self._is_wanted and self._not_before.expired()
        if self._front is None and (is_due or self._is_to_report):
            self._begin()
        if self._front is not None:
            self._inform(self._front, workers, state())

    def report(self) -> None:
        """Have the front process write a report, and start one for it if there is none."""
        self._is_to_report = self._can_report

    def end(self) -> None:
        """Have the front process end soon, and start no other. Idempotent."""
        self._is_wanted = self._can_report = self._is_to_report = False
        if self._front is not None and not self._front.channel.closed:
            self._front.channel.close()
            self._kill_at = Deadline(_END_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether there is no front process."""
        return self._front is None

    def kill(self) -> None:
        """End the front process at once. Idempotent."""
        self.end()
        front, self._front = self._front, None
        if front is not None:
            front.kill()
            front.release()

    # What workers that start later are asked

    def standing(self) -> list[tuple[str, str]]:
        """The commands and the arguments, the oldest first."""
        return list(self._standing.values())

    @property
    def is_suspended(self) -> bool:
        """Whether the workers accept no clients, by an order."""
        return suspends(self._standing.get(SUSPEND, ("",))[0])

    def tell(self, command: str, arguments: str = "{}") -> None:
        """Send a command to all workers. They do not answer."""
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it has ended, or does not read
                worker.channel.send(Tell(command, arguments))

    # The front process

    def _begin(self) -> None:
        front = Child()
        front.name = "netkit-front"
        try:
            self._start(front)
        except Exception as error:  # OSError of the system, or an attachment that is not picklable
            front.kill()
            front.release()
            self._is_to_report = False
            self._back_off.failed()
            self._not_before = Deadline(self._back_off.pause)
            reason = f"the process for operators cannot be started: {type(error).__name__}: {error}"
            self._emit(events.WorkerFailed(reason, self._back_off.pause))
            return
        self._front = front
        self._met, self._sent = set(), None
        self._steady_at, self._kill_at = Deadline(_STEADY), Deadline(None)

    def _listen(self, front: Child) -> None:
        try:
            while not front.channel.closed:
                for message in front.channel.receive(Tell):
                    front.channel.allow()
                    self._take(message)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            front.channel.close()
            self._kill_at = Deadline(_END_SECONDS)

    def _take(self, message: Tell) -> None:
        """Carry out an order. ValueError for an invalid one, which the front would not send."""
        try:
            arguments = json.loads(message.arguments)
            check_order(message.command, arguments)
            if message.command == "standing":
                self._keep_standing(**arguments)
            else:
                self._obey(message.command, arguments)
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"an invalid order: {error}") from None

    def _keep_standing(self, command: str, arguments: dict[str, Any], key: str = "") -> None:
        key = key or command
        self._standing.pop(key, None)
        order = self._standing[key] = command, json.dumps(arguments)
        self.tell(*order)  # those that the front has not asked, since it does not know them yet

    def _check(self, front: Child) -> None:
        if self._kill_at.expired():
            front.kill()
        if not front.has_ended():
            return
        front.release()
        self._front = None
        if self._is_wanted:
            if self._steady_at.expired():
                self._back_off.succeeded()
            pause = self._back_off.pause
            self._back_off.failed()
            self._not_before = Deadline(pause)
            self._emit(events.FrontEnded(front.pid, front.status, pause))

    def _inform(self, front: Child, workers: Iterable[Worker], state: State) -> None:
        """Tell the front process what it does not know. It tries again next time if it is full."""
        with contextlib.suppress(OSError):
            self._introduce_all(front, workers)
            if state != self._sent:
                front.channel.send(state)
                self._sent = state
            if self._is_to_report:
                self._is_to_report = False
                front.channel.send(Tell("report", "{}"))

    def introduce(self, workers: Iterable[Worker]) -> None:
        """Name new workers to the front process, before anybody else learns that they are ready."""
        if self._front is not None:
            with contextlib.suppress(OSError):
                self._introduce_all(self._front, workers)

    def _introduce_all(self, front: Child, workers: Iterable[Worker]) -> None:
        for worker in workers:
            if worker.ready and not worker.channel.closed:
                self._introduce(front.channel, worker)

    def _introduce(self, front: Channel, worker: Worker) -> None:
        worker.number = worker.number or next(self._numbers)
        if worker.number in self._met:
            return
        ours, theirs = sockopts.socket_pair()
        with contextlib.closing(ours), contextlib.closing(theirs):
            message = Questions(worker.number, worker.pid)
            front.send(message, ours.fileno())
            self._met.add(worker.number)
            with contextlib.suppress(OSError):  # it has ended, so the front sees the end of input
                worker.channel.send(message, theirs.fileno())
