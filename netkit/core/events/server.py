"""The events of a server and of its processes: listeners, settings, signals, workers, the stop."""

from __future__ import annotations

from ..text import several
from .base import ERROR, WARNING, Event


def _time_limit(seconds: float | None) -> str:
    return "no time limit" if seconds is None else f"up to {round(seconds, 1):g} s to finish"


def again(pause: float) -> str:
    """When another process is started in the place of one that has ended; `pause` in seconds."""
    return f"starting another in {pause:g} s" if pause else "starting another"


class Listening(Event):
    """The server is bound to `address` (``127.0.0.1:8080``) and accepts clients.

    `tls` tells whether clients speak TLS there from the first byte on, and `proxy` whether a PROXY
    header comes before everything else.
    """

    address: str
    tls: bool = False
    proxy: bool = False

    def _text(self) -> str:
        every = self.address.startswith(("0.0.0.0:", "[::]:"))
        notes = ", ".join(["every address"] * every + ["PROXY"] * self.proxy + ["TLS"] * self.tls)
        return f"listening on {self.address}{notes and f' ({notes})'}"


class Unlimited(Event):
    """A server without limits listens for other machines at `address`. Once for each server."""

    address: str
    line = (
        "{address} can be reached from other machines, and no limit is set; "
        "profile='public' (--profile public) sets limits for the Internet"
    )


class ListenerLost(Event):
    """The listening socket failed without `server_close`. The server accepts no more clients."""

    error: BaseException
    level = ERROR
    line = "no new clients any more: {error}"


class AcceptFailed(Event):
    """One client could not be accepted, by its own fault (a failed TLS handshake, for example)."""

    error: BaseException
    level = WARNING
    line = "a client could not be accepted: {error}"


class AcceptPaused(Event):
    """The machine is short of a resource, and accepting pauses. Emitted once in a shortage."""

    error: BaseException
    level = WARNING
    line = "no new clients for the moment: {error}"


class AcceptResumed(Event):
    """The shortage is over. Its last pause ended `seconds` after its first one had begun.

    Emitted once accepting has not paused for some seconds, but not if the server stops before that.
    """

    seconds: float
    level = WARNING
    line = "accepting clients again, after {seconds:.1f} s"


class HandshakeInAccept(Event):
    """`hook` (`get_request`) does TLS handshakes, during which no other client is accepted.

    Emitted once for each server.
    """

    hook: str
    level = WARNING
    line = (
        "{hook} does TLS handshakes, so that one silent client keeps all others waiting: "
        "use the option tls, or wrap_socket(..., do_handshake_on_connect=False)"
    )


class HookFailed(Event):
    """An overridden method of the server (`service_actions`, `handle_error`, ...) raised.

    Also `on_stop`, or `on_start` in a worker; `error` is a TimeoutError if one of them is late.
    """

    hook: str
    error: BaseException
    level = ERROR
    with_traceback = True
    line = "{hook} failed: {error}"


class ListLoaded(Event):
    """A server begins to listen with a list of addresses, which has `rules` rules from a file."""

    name: str
    rules: int
    path: str

    def _text(self) -> str:
        return f"{self.name}: {several(self.rules, 'rule')} from {self.path}"


class KeyReadable(Event):
    """Every user of this machine may read the private key in the file `name`. Once for each file.

    Clients load keys, too, so `server` is always None.
    """

    name: str
    level = WARNING
    line = "every user of this machine can read the key file {name!r}: chmod o-r"


class SettingsReloaded(Event):
    """The files that `what` names (``TLS``, ``the list 'deny'``) have been read again.

    `rules` is the number of rules that a list has now, and `before` the number that it had. Both
    are None for anything but a list.
    """

    what: str
    rules: int | None = None
    before: int | None = None

    def _text(self) -> str:
        rules = (
            "" if self.rules is None else f": {several(self.rules, 'rule')} (were {self.before})"
        )
        return f"{self.what} reloaded{rules}"


class SettingsKept(Event):
    """`what` could not be read again, or was invalid. The server keeps the old setting."""

    what: str
    error: BaseException
    level = ERROR
    line = "{what} not reloaded, the old one stays: {error}"


class Stopping(Event):
    """The server drains: `connections` are open and have `timeout` seconds to finish.

    `timeout` is None if there is no limit.
    """

    connections: int
    timeout: float | None

    def _text(self) -> str:
        return f"stopping: {self.connections} connected, {_time_limit(self.timeout)}"


class Stopped(Event):
    """The server has stopped. The counts are those of `StopReport`."""

    finished: int
    cut: int
    line = "stopped: {finished} finished, {cut} cut"


class OperatorCommand(Event):
    """An operator has given a command that changes something, by the control socket.

    `by` names the user and the process, as far as the system tells them. `error` is why the command
    has failed; it is empty if the command was carried out.
    """

    command: str
    by: str
    error: str = ""

    def _text(self) -> str:
        failure = f": failed: {self.error}" if self.error else ""
        return f"control: {self.command} ({self.by}){failure}"


class StatusReported(Event):
    """A line of the report that SIGUSR1 asks for."""

    text: str
    line = "report: {text}"


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
        return f"{several(self.workers, 'worker')} ready"


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
        return f"worker {self.pid} ended {end_of(self.status)}; {again(self.pause)}"


def end_of(status: int | None) -> str:
    """How a process has ended. `status` is that of `WorkerEnded`."""
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
        return f"a worker failed: {self.reason}; {again(self.pause)}"


class WorkersStopping(Event):
    """`workers` worker processes drain. Their clients have `timeout` seconds to finish."""

    workers: int
    timeout: float

    def _text(self) -> str:
        return f"stopping: {several(self.workers, 'worker')}, {_time_limit(self.timeout)}"


class Reloaded(Event):
    """`workers` new worker processes have taken over. The old ones finish with their clients."""

    workers: int

    def _text(self) -> str:
        return f"reloaded: {several(self.workers, 'worker')}"


class ReloadFailed(Event):
    """New worker processes could not be started. The old ones continue to serve."""

    reason: str
    level = ERROR
    line = "not reloaded, the old workers continue: {reason}"
