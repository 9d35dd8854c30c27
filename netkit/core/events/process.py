"""The events of the processes of a server: its workers, its signals, its end."""

from __future__ import annotations

from .base import ERROR, WARNING, Event


def time_limit(seconds: float | None) -> str:
    """Return the part of a message that says how long clients may take to finish."""
    return "no time limit" if seconds is None else f"up to {round(seconds, 1):g} s to finish"


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"


def _again(pause: float) -> str:
    return f"starting another in {pause:g} s" if pause else "starting another"


class SignalsUnavailable(Event):
    """`run` or `serve` was called outside the main thread, where signals cannot be handled."""

    level = WARNING
    line = (
        "signals are not handled here: this is not the main thread; call stop() to end the server"
    )


class ServingOn(Event):
    """The program has ended at Python's prompt, and a server of `Server.start` keeps it alive."""

    address: str
    level = WARNING
    line = "the server on {address} serves on; Ctrl+C stops it, and ends the program"


class NothingToReload(Event):
    """SIGHUP was received, and the server has no file to read again. It continues to serve."""

    line = "SIGHUP: there is nothing to reload"


class WorkersReady(Event):
    """`workers` worker processes accept clients: at the start, or since a change."""

    workers: int

    def _text(self) -> str:
        return f"{_workers(self.workers)} ready"


class WorkerEnded(Event):
    """A worker process ended without an order. Another one is started after `pause` seconds.

    `status` is that of `multiprocessing.Process.exitcode`: negative for a signal. It is None if
    another part of the program has collected it.
    """

    pid: int
    status: int | None
    pause: float
    level = ERROR

    def _text(self) -> str:
        return f"worker {self.pid} ended {_end(self.status)}; {_again(self.pause)}"


def _end(status: int | None) -> str:
    if status is None:
        return "with an unknown status"
    if status >= 0:
        return f"with status {status}"
    import signal  # here because most programs never need it

    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"by signal {-status}"


class WorkerFailed(Event):
    """A worker process could not be started, or could not serve.

    Another one is started after `pause` seconds.
    """

    reason: str
    pause: float
    level = ERROR

    def _text(self) -> str:
        return f"a worker failed: {self.reason}; {_again(self.pause)}"


class WorkersStopping(Event):
    """`workers` worker processes drain. Their clients have `timeout` seconds to finish."""

    workers: int
    timeout: float

    def _text(self) -> str:
        return f"stopping: {_workers(self.workers)}, {time_limit(self.timeout)}"


class Reloaded(Event):
    """`workers` new worker processes have taken over. The old ones finish with their clients."""

    workers: int

    def _text(self) -> str:
        return f"reloaded: {_workers(self.workers)}"


class ReloadFailed(Event):
    """New worker processes could not be started. The old ones continue to serve."""

    reason: str
    level = ERROR
    line = "not reloaded, the old workers continue: {reason}"
