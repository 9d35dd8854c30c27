"""What an operator's endpoint sees of a program that serves, in one process or in several.

The package `netkit.process` knows nothing of endpoints: an `Attachment` has them, and gets a
`Program`, through which it asks the processes that serve, and gives orders.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from ..core.record import NamedTuple
from ..core.text import described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..server.server import Server
    from .supervised import Notices, Supervised

Answering = Callable[[str, dict[str, Any]], Any]
"""``answering(command, arguments)`` answers a question in a process that serves.

The arguments and the result are JSON values. ValueError if the question is wrong.
"""

NONE: Mapping[str, Any] = MappingProxyType({})
SECONDS = 1.0  # for the answers to a question
MAX_ORDER = 12_000  # characters of the arguments of an order, as JSON


class Answer(NamedTuple):
    """The answer of one process that serves."""

    pid: int
    value: Any = None
    """A JSON value; None if there is an error, except in the answer to ``"metrics"``.

    There it has the counters that the process has sent last, so that a sum of counters never falls.
    """
    error: str = ""
    """Why the process has not answered: ``"no answer within 1 s"``, or what was wrong. Or empty."""


class ProgramState(NamedTuple):
    """The state of a program. All fields are JSON values."""

    phase: str
    """``"starting"``, ``"ready"``, ``"suspended"`` or ``"stopping"``."""
    pid: int
    """The number of the only process, or of the parent of the workers."""
    started_at: float
    """As `time.time`."""
    workers: int
    """How many worker processes there are to be; 0 if the one process serves itself."""
    restarts: int
    """How many workers have been replaced since the start because they had ended."""
    reloads: dict[str, int]
    """How many reloads have been ``"ok"``, and how many have ``"failed"``."""
    retired: dict[str, float]
    """The sums of the counters of all processes that have served and have ended."""
    addresses: list[str]


class Program(Protocol):
    """A program that serves. Thread-safe."""

    def state(self) -> ProgramState: ...

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] = NONE,
        pids: Collection[int] | None = None,
        seconds: float = SECONDS,
    ) -> list[Answer]:
        """Ask each process that serves, or those of `pids`, and return their answers.

        Several processes are asked at the same time, and those that have not answered after
        `seconds` have answers with an error. They do not carry out the question later.
        """
        ...

    def order(self, command: str, /, **arguments: Any) -> None:
        """Give an order, and return at once. ValueError for an invalid one.

        | command    | arguments                       | effect                                  |
        |------------|---------------------------------|-----------------------------------------|
        | `stop`     | `timeout`, `patience`, `delay`  | as `Server.stop`                        |
        | `reload`   |                                 | as SIGHUP                               |
        | `resize`   | `count`                         | as `Workers.resize`                     |
        | `release`  |                                 | files of Unix sockets are left to       |
        |            |                                 | another program                         |
        | `standing` | `command`, `arguments`, `key`   | processes that start later are asked    |
        |            |                                 | this before their first client; a later |
        |            |                                 | order with the same `key` replaces it   |
        """
        ...


class Closeable(Protocol):
    def close(self) -> object: ...


class Attachment(Protocol):
    """What is attached to a program for its operators. Can be pickled for spawned processes.

    | method            | process                               | when                            |
    |-------------------|---------------------------------------|---------------------------------|
    | `open`            | the parent, or the only one           | before anything serves          |
    | `attach`          | each one that serves                  | before its first client         |
    | `serve`, `report` | the front process, or the only one    | while the program serves        |
    | `reopen`          | each one that serves                  | after SIGHUP                    |
    | `detach`          | each one that serves                  | after its last client           |
    | `forget`          | each one that has copies of listeners | at its start                    |
    | `release`         | the parent, or the only one           | with the order `release`        |
    | `notices`         | the parent, or the only one           | before anything serves          |
    | `prepare_log`     | the front process, if it is spawned   | at its start                    |
    | `close`           | the parent, or the only one           | after the end of all            |
    """

    attaches: bool
    """Whether `attach` is to be called before the first client, and not only for a report."""
    has_endpoints: bool
    """Whether there is something to `serve`."""
    survives_terminal: bool
    """Whether SIGHUP is a reload though the program's terminal is lost."""

    def open(self, servers: Sequence[Server]) -> None:
        """Open the listeners of the endpoints. OSError or ValueError, with a text for users."""
        ...

    def attach(self, servers: Sequence[Server]) -> Answering:
        """Begin to watch `servers`, and return what answers questions in this process."""
        ...

    def detach(self) -> None:
        """End what `attach` has begun. Idempotent."""
        ...

    def serve(self, program: Program) -> Closeable:
        """Start the endpoints in the background. The result ends them."""
        ...

    def report(self, program: Program) -> None:
        """Write a report on `program` into the log. May take as long as `Program.ask`."""
        ...

    def reopen(self) -> bool:
        """Open the files anew that this process writes. Return whether there are any."""
        ...

    def forget(self) -> None:
        """Close this process's copies of what the parent has opened."""
        ...

    def release(self) -> None:
        """Leave the files of Unix sockets to another program."""
        ...

    def notices(self, program: Supervised) -> Notices:
        """Return what tells a service manager about `program`."""
        ...

    def prepare_log(self) -> None:
        """Set up the log of a new interpreter as that of the parent."""
        ...

    def close(self) -> None:
        """Close what `open` has opened, and remove its files. Idempotent."""
        ...


def answered(answering: Answering, pid: int, command: str, arguments: Mapping[str, Any]) -> Answer:
    """Return the answer of `answering` in this process, whose number is `pid`."""
    try:
        return Answer(pid, answering(command, dict(arguments)))
    except ValueError as error:
        return Answer(pid, None, str(error))
    except Exception as error:  # a fault of netkit's, or of a method that the program overrides
        return Answer(pid, None, described(error))
