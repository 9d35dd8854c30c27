"""The events of a program that serves, as a service manager or a balancer sees the program.

They are emitted in the only process of the program, or in the parent of its workers.
"""

from __future__ import annotations

from .base import DEBUG, ERROR, Event
from .server import again, end_of


class Ready(Event):
    """All servers of the process, or all workers, accept clients. Emitted once."""

    level = DEBUG
    line = "ready"


class ReloadBegun(Event):
    """The program begins to read its files again, and with workers to load its code again."""

    level = DEBUG
    line = "reload begun"


class ReloadEnded(Event):
    """A reload has ended. `error` says what was not reloaded; it is empty if all was."""

    error: str
    level = DEBUG

    def _text(self) -> str:
        return f"reload ended: {self.error or 'all is reloaded'}"


class StopDelayed(Event):
    """The program is to stop, and still serves for `seconds`, so that balancers notice."""

    seconds: float
    line = "not ready: accepting for another {seconds:g} s before the stop"


class FrontEnded(Event):
    """The process that answers operators (status, metrics, control) ended without an order.

    The clients do not notice. Another one is started after `pause` seconds. `status` is that of
    `WorkerEnded`.
    """

    pid: int
    status: int | None
    pause: float
    level = ERROR

    def _text(self) -> str:
        what = f"process {self.pid}, which answers operators,"
        return f"{what} ended {end_of(self.status)}; {again(self.pause)}"
