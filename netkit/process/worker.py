"""One worker process, as its parent sees it.

The parent sends orders. The worker reports that it is ready, or why it cannot serve, and at its end
how many clients it has served (`netkit.process.channel`). Each of the two sees the end of input
once the other one has ended in any way. The parent kills a worker that is late:

| state of the worker                         | is killed after                                   |
|---------------------------------------------|---------------------------------------------------|
| starting                                    | `READY_SECONDS`                                   |
| starting, and told to stop                  | `KILL_GRACE`, since it has no clients             |
| ready                                       | never                                             |
| ready, and told to stop                     | the time of the strictest order, and `KILL_GRACE` |
| has reported its end, or closed its channel | `KILL_GRACE`                                      |
| has sent an invalid message                 | no time                                           |
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.deadline import Deadline
from ..net.forks import do_not_undo, undo_in_children
from ..server.drain import CUT_GRACE
from ..server.registry import StopReport
from .channel import Channel, Failed, News, Ready, Stop, channel_pair
from .child import Child

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# Seconds that a worker gets to end by itself, from the moment when its clients are cut: the threads
# of those get `CUT_GRACE`, and all must be over before a supervisor of the parent loses patience
# (docker stop: 10 seconds).
KILL_GRACE = 1.9 * CUT_GRACE
READY_SECONDS = 300.0  # for loading a handler: models may be large


class Worker:
    """A worker process. For one thread."""

    channel: Channel
    """The parent's end, from `start` on."""

    def __init__(self, generation: int, index: int, round_: int = 0) -> None:
        """`index`: the least number that no other worker has. `round_`: as for `Crew`."""
        self.generation = generation
        self.index = index
        self.round = round_
        self.started_at = time.monotonic()
        self.ready = False
        self.told: Stop | None = None
        """The strictest of the orders to stop."""
        self.failure: str | None = None
        """Why it cannot serve."""
        self.report = StopReport(0, 0)
        self.status: int | None = 0
        """The exit status, once it has ended; None if it is lost."""
        self.ended = False
        self.pid = 0
        self._child: Child | None = None
        self._kill_unready_at, self._kill_ready_at = Deadline(READY_SECONDS), Deadline(None)

    def start(self, context: BaseContext, target: Callable[..., None], *arguments: Any) -> None:
        """Start a process that calls ``target(channel, *arguments)`` with its end of the channel.

        OSError if the system cannot start it, and what pickling raises. It must be killed, and
        `check` called, whatever is raised.
        """
        self.channel, self._theirs = channel_pair()
        self._child = Child(context, target, (self._theirs, *arguments))
        # A child with a copy of the parent's end would not see that the parent has ended.
        undo_in_children(self.channel.close)
        self._child.start()
        self._theirs.close()
        self.pid = self._child.pid

    @property
    def end(self) -> Any:
        """The object to pass to `multiprocessing.connection.wait` to await the end."""
        assert self._child is not None, "it has been started"
        return self._child.end

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started_at

    @property
    def leaving(self) -> bool:
        """Whether it has been told to stop."""
        return self.told is not None

    @property
    def kill_at(self) -> Deadline:
        """When it is late: see the table of this module."""
        return self._kill_ready_at if self.ready else self._kill_unready_at

    def tell(self, order: Stop) -> None:
        """Give an order, and time to obey it; nothing if it is gone.

        An order that is not stricter than those before is not sent: a worker that hangs reads
        none, so its channel would be full one day.
        """
        self._allow(sum(order) + KILL_GRACE)
        strictest = order if self.told is None else Stop(*map(min, order, self.told))
        if strictest == self.told:
            return
        self.told = strictest
        with contextlib.suppress(OSError):
            self.channel.send(order)

    def _allow(self, seconds: float) -> None:
        self._kill_ready_at = self._kill_ready_at.earlier(Deadline(seconds))
        self._kill_unready_at = self._kill_unready_at.earlier(Deadline(min(seconds, KILL_GRACE)))

    def check(self) -> bool:
        """Take in what has happened to it. Never waits, unless it must be killed.

        Return whether it has ended. Then its last messages have been read, and all that it held in
        this process is closed.
        """
        if self.kill_at.expired():
            self.kill()
        child = self._child
        if child is not None and not self.ended:
            self.listen()
            if child.started:
                if not child.has_ended():
                    return False
                self.status = child.status
                self.listen()
            self._release(child)
        self.ended = True
        return True

    def kill(self) -> None:
        """End it at once, and wait for that; nothing if it has ended."""
        if self.ended or self._child is None:
            return
        if not (self.ready or self.leaving or self.failure or self.channel.closed):
            self.failure = f"not ready after {READY_SECONDS:g} seconds"
        self._child.kill()

    def listen(self) -> None:
        """Read the messages that have come. Never waits."""
        try:
            while not self.channel.closed:
                for news in self.channel.receive(Ready, Failed, StopReport):
                    self._take_in(news)
        except BlockingIOError:
            return
        except (EOFError, OSError):  # it is to end, or has executed another program
            self.channel.close()
            self._allow(KILL_GRACE)
        except ValueError as error:
            self.failure = f"worker {self.pid} has sent {error}"
            self.channel.close()
            self._allow(0)

    def _take_in(self, news: News) -> None:
        if isinstance(news, Ready):
            self.ready = True
            return
        if isinstance(news, Failed):
            self.failure = news.reason
        else:
            self.report = news
        self._allow(KILL_GRACE)

    def _release(self, child: Child) -> None:
        """Close all that it held here. Idempotent: a signal handler may interrupt it."""
        do_not_undo(self.channel.close)
        self.channel.close()
        self._theirs.close()
        child.close()
