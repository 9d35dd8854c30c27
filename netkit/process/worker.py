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
| has been asked whether it accepts clients   | the seconds that it was given to answer           |
"""

from __future__ import annotations

import contextlib
import time

from ..core.deadline import Deadline
from ..server.drain import CUT_GRACE
from ..server.registry import StopReport
from .channel import Alive, Ask, Failed, Loaded, News, Ready, Stop
from .child import Child
from .signals import REPORTS, REQUESTS, StopSignals

# Seconds that a worker gets to end by itself, from the moment when its clients are cut: the threads
# of those get `CUT_GRACE`, and all must be over before a supervisor of the parent loses patience
# (docker stop: 10 seconds).
KILL_GRACE = 1.9 * CUT_GRACE
READY_SECONDS = 300.0  # for loading a handler: models may be large

# A parent catches these and passes them on as orders. All of them may come to the whole process
# group, from a terminal, and a worker must not obey them itself.
PARENTS_SIGNALS = tuple(it for it in REQUESTS if it not in (*StopSignals.SIGNALS, *REPORTS))


class Worker(Child):
    """A worker process. For one thread. Holds descriptors from `start` until its end."""

    name = "netkit-worker"

    def __init__(self, generation: int, index: int, round_: int = 0) -> None:
        """`index` is the least number that no other worker has.

        Workers that are started together have the same `round_`.
        """
        super().__init__()
        self.generation = generation
        self.index = index
        self.round = round_
        self.started_at = time.monotonic()
        self.loaded: Loaded | None = None
        """The options of the application, once the worker has loaded it."""
        self.is_known = False
        """Whether the parent has adopted these options."""
        self.ready = False
        self.told: Stop | None = None
        """The strictest of the orders to stop."""
        self.failure: str | None = None
        """Why the worker cannot serve; None if it can."""
        self.connections = 0
        """How many are open, as of the last answer to `ask`."""
        self.report = StopReport(0, 0)
        self.number = 0
        """A number that no other worker of the program has or had; 0 if it has none yet."""
        self._kill_unready_at, self._kill_ready_at = Deadline(READY_SECONDS), Deadline(None)
        self._is_asked = False  # and has not answered
        self._answer_by, self._answer_seconds = Deadline(None), 0.0

    @property
    def leaving(self) -> bool:
        return self.told is not None

    @property
    def kill_at(self) -> Deadline:
        """When the worker is late: see the table of this module."""
        due = self._kill_ready_at if self.ready else self._kill_unready_at
        return due.earlier(self._answer_by)

    def ask(self, seconds: float | None) -> None:
        """Ask whether the worker accepts clients, and kill it if it does not answer in `seconds`.

        A worker that is to stop has its own limits, and may be asked without one (None), too. Does
        nothing if the worker is not ready, or has not answered the last question.
        """
        if self._is_asked or not self.ready or self.channel.closed:
            return
        self._is_asked = True
        if seconds is not None and not self.leaving:
            self._answer_by, self._answer_seconds = Deadline(seconds), seconds
        self.channel.allow()
        with contextlib.suppress(OSError):  # it hangs, or is gone
            self.channel.send(Ask())

    def tell(self, order: Stop) -> None:
        """Order the worker to stop, and give it time to do so. Does nothing if the worker is gone.

        An order that is not stricter than those before is not sent: a worker that hangs reads no
        order, so its channel would be full one day.
        """
        self._allow(sum(order) + KILL_GRACE + (self.loaded.hook_seconds if self.loaded else 0))
        strictest = order if self.told is None else Stop(*map(min, order, self.told))
        if strictest != self.told:
            self.told = strictest
            with contextlib.suppress(OSError):
                self.channel.send(order)

    def _allow(self, seconds: float) -> None:
        self._kill_ready_at = self._kill_ready_at.earlier(Deadline(seconds))
        self._kill_unready_at = self._kill_unready_at.earlier(Deadline(min(seconds, KILL_GRACE)))

    def check(self) -> bool:
        """Note what has happened to the worker, and return whether it has ended.

        Never waits, unless the worker must be killed. At the end of the worker, its last messages
        have been read, and its descriptors in this process are closed.
        """
        if self.kill_at.expired():
            self.kill()
        if self.is_started:
            self.listen()
            if not self.has_ended():
                return False
            self.listen()
        self.release()
        return True

    def kill(self) -> None:
        """Kill the process, and wait for its end, unless it has ended or was never started."""
        if not self.is_started:
            return
        if self._answer_by.expired():
            self.failure = f"worker {self.pid} has hung for {self._answer_seconds:g} s"
        elif not (self.ready or self.leaving or self.failure or self.channel.closed):
            self.failure = f"not ready after {READY_SECONDS:g} seconds"
        super().kill()

    def listen(self) -> None:
        """Read the messages that have come. Never waits."""
        try:
            while not self.channel.closed:
                for news in self.channel.receive(Loaded, Ready, Failed, Alive, StopReport):
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
        if isinstance(news, Loaded):
            self.loaded = news
            return
        if isinstance(news, Alive):
            self.connections = news.connections
            self._is_asked, self._answer_by = False, Deadline(None)
            return
        if isinstance(news, Failed):
            self.failure = news.reason
        else:
            self.report = news
        self._allow(KILL_GRACE)
